"""Stage `data`."""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from cpo_ray.config.section import Section
from cpo_ray.config.sources import HUB_KEYS, FieldsConfig, RowSource, SourceConfig
from cpo_ray.config.split_sizes import SHARES, FilledSplitSize, SplitSize, count_rows, is_share

ROW_SOURCES: tuple[str, ...] = get_args(RowSource)

EMBEDDED = ("synthetic", "python_docs")
"""Sources that need no file."""


class TokenizerConfig(Section):
    """The tokenizer: trained on the training split, or loaded."""

    path: str | None = None
    """A directory (a Hugging Face tokenizer, or GPT-2 style `*vocab.json` and `*merges.txt`) or a hub id.
    Default: the tokenizer of `model.path`. Without that, a byte-level BPE is trained on the training split."""
    vocabulary_size: Annotated[int, Field(ge=300, le=500_000)] = 1024
    """Size of the trained vocabulary. Not used with `path`."""


class ChatConfig(Section):
    """Prompts for chat models. See [Data](data.md#chat-models)."""

    use: Literal["auto", "always", "never"] = "auto"
    """Whether the tokenizer's chat template renders prompts and answers. `auto`: if it has one. `never`: `data.template` does;
    this is the default if `data.template` is given."""
    turns: Literal["last", "every"] = "last"
    """Which answers of a conversation are responses: the last one, or every one, each in a row of its own with what precedes
    it as the prompt. The rows of a conversation are in the same split."""
    thinking: bool = False
    """The switch `enable_thinking` of templates that have one (Qwen3). Off, the prompt has the empty thoughts that the template
    writes there; on, the thoughts are part of the answer."""


class PassagesConfig(Section):
    """How articles (`source: wikidump` or `text`) become prompts and continuations."""

    tokens: Annotated[int, Field(ge=8)] = 256
    """Tokens of a sample, prompt and continuation together. An article is cut into consecutive samples."""
    min_tokens: Annotated[int, Field(ge=8)] = 32
    """Minimum tokens of an article's last sample. A shorter rest is dropped, and such articles are counted."""
    prompt_share: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """The first floor(`prompt_share` * n) of a sample's n tokens are the prompt (the paper: 15%)."""

    def prompt_tokens(self, tokens: int) -> int:
        """Prompt tokens of a sample of `tokens` tokens."""
        return int(self.prompt_share * tokens + 1e-9)  # 0.29 * 100 is 28.999...

    @model_validator(mode="after")
    def _check(self) -> "PassagesConfig":
        if self.min_tokens > self.tokens:
            raise ValueError(f"min_tokens {self.min_tokens} exceeds tokens {self.tokens}")
        prompt = self.prompt_tokens(self.min_tokens)
        if not 1 <= prompt <= self.min_tokens - 2:
            raise ValueError(
                f"prompt_share {self.prompt_share:g} of min_tokens {self.min_tokens} gives {prompt} prompt and "
                f"{self.min_tokens - prompt} continuation tokens, but at least 1 and 2 are needed: raise min_tokens"
            )
        return self


class DataConfig(Section):
    """Stage `data`: read, split, truncate and tokenize."""

    source: Literal["synthetic", "python_docs", RowSource, "wikidump", "text"] = "synthetic"
    """`synthetic` (generated questions with checkable answers) and `python_docs` (passages of the documentation in Python's
    standard library: real text, PSF license) are embedded and need no file. `wikidump` reads MediaWiki dumps, `text` plain
    text. The others read rows, and name their layout: `dolly`, `alpaca`, `messages` (OpenAI's), `sharegpt`,
    `prompt_completion`, `preferences` (several ranked answers), or `instructions` with the names in `fields`. `auto`: the first
    row shows the layout, see [Data](data.md#sources). The content decides the format (JSON lines, a JSON array, Parquet), and
    whether it is compressed. Default: `auto` with `path` or `sources`."""
    path: str | None = None
    """The data: a file, a folder, a pattern (`dumps/*.xml*.bz2`) or an fsspec URL of one (`s3://...`, `hf://datasets/...`);
    for sources of rows also a dataset on the Hugging Face hub (`owner/name`). Required for every source that is not embedded.
    Several large files are read in parallel."""
    fields: FieldsConfig = FieldsConfig()
    """For `instructions`, and for `auto` if the rows have these names."""
    max_answers: Annotated[int, Field(ge=2)] = 8
    """Only for `preferences`: the most answers of a row that are kept. Of more, the best, the worst, and others evenly between
    them."""
    subset: str | None = None
    """The subset (configuration) of a dataset on the hub. Default: its only or default one."""
    split: str | None = None
    """The split of a dataset on the hub that is read, also a part (`train[:10%]`). Default: `train`."""
    revision: str | None = None
    """The revision of a dataset on the hub: a branch, a tag or a commit. Default: the newest."""
    sources: tuple[SourceConfig, ...] = ()
    """Several sources of rows, instead of `path`, each with its own layout and weight."""
    passages: PassagesConfig = PassagesConfig()
    """Only for `wikidump` and `text`."""
    train_rows: FilledSplitSize = 3000
    """Rows of the training split (the paper: 7505 of Dolly), or their share of all rows, for example 0.8. Without any of these
    three sizes, a source of rows is split into shares of 0.8, 0.1 and 0.1."""
    validation_rows: SplitSize = 200
    """Rows, or a share, held out for tuning. They are taken from the rows for training, never from the test rows."""
    test_rows: FilledSplitSize = 500
    """Rows, or a share, of the test split (the paper: 7506 of Dolly). A prompt is never in two splits."""
    template: str = "{instruction}\n{context}\n"
    """The prompt, with `{instruction}` and `{context}`. For a row without context, the line with `{context}` is removed. With a
    chat template, this is the text of the user's message, without white space around it, for a row that has no messages."""
    chat: ChatConfig = ChatConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    max_prompt_tokens: Annotated[int, Field(ge=4)] = 192
    """A longer prompt keeps the special tokens that it begins with (BOS) and the end of its text. Such rows are counted."""
    max_response_tokens: Annotated[int, Field(ge=2)] = 64
    """The limit of a response with its EOS. One that does not fit keeps its first `max_response_tokens` tokens and has no EOS,
    for it does not end there. Such rows are counted. It is also the limit of a sampled negative and of a generated answer."""
    on_bad_row: Literal["error", "quarantine"] = "error"
    """A malformed or empty row stops the stage, or is counted and written to `data/quarantine.jsonl` with its line number."""

    @property
    def files(self) -> str | None:
        """The files of the only source: `path`, or None for an embedded source and for several sources."""
        return None if self.source in EMBEDDED else self.path

    @property
    def inputs(self) -> tuple[SourceConfig, ...]:
        """The sources of rows: `sources`, or `path` as the only one; none for articles and for the embedded task."""
        if self.source not in ROW_SOURCES or self.sources:
            return self.sources
        keys: dict[str, Any] = {key: getattr(self, key) for key in ("source", "path", "fields", *HUB_KEYS)}
        return (SourceConfig.model_construct(**keys),)

    @property
    def has_answers(self) -> bool:
        """Whether rows have several ranked answers, which become candidates."""
        return any(source.source == "preferences" for source in self.inputs)

    @property
    def has_articles(self) -> bool:
        """Whether the source has articles, which are cut into passages, instead of instructions with responses."""
        return self.source in {"wikidump", "text"}

    @property
    def responses_go_on(self) -> bool:
        """Whether a response is a part of a text that goes on after it, so that it has no EOS."""
        return self.has_articles or self.source == "python_docs"

    @property
    def sizes(self) -> dict[str, int | float]:
        """Rows or shares of the splits `train`, `validation` and `test`."""
        return {key.removesuffix("_rows"): getattr(self, key) for key in SHARES}

    @property
    def has_shares(self) -> bool:
        """Whether the rows of a split depend on how many there are."""
        return any(map(is_share, self.sizes.values()))

    def rows(self, split: str) -> int:
        """Rows of a split. Raises ValueError for a share: use `with_counts` first."""
        size = self.sizes[split]
        if is_share(size):
            raise ValueError(f"data.{split}_rows {size:g} is a share of rows that are not counted yet")
        return int(size)

    def with_counts(self, total: int) -> "DataConfig":
        """The same with numbers of rows instead of shares, if there are `total` usable rows."""
        counts = count_rows(self.sizes, total)
        return self.model_copy(update={f"{split}_rows": count for split, count in counts.items()})

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, keys: Any) -> Any:
        """The source of a configuration with a path, the sizes of a source of rows, and `chat.use`, unless they are given."""
        if not isinstance(keys, dict):
            return keys
        if keys.get("source") is None and (keys.get("path") is not None or keys.get("sources")):
            keys = keys | {"source": "auto"}
        if keys.get("source") in ROW_SOURCES and not SHARES.keys() & keys.keys():
            keys = keys | SHARES
        chat = keys.get("chat", {})
        if keys.get("template") is not None and isinstance(chat, dict) and "use" not in chat:
            keys = keys | {"chat": chat | {"use": "never"}}
        return keys

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        if self.source not in EMBEDDED and not self.path and not self.sources:
            raise ValueError(
                f"source: {self.source} needs data.path (for instance --set data.path=/data/{self._example})"
            )
        if self.chat.use == "always" and self.tokenizer.path is None:
            raise ValueError(
                "chat.use: always needs a tokenizer with a chat template: set data.tokenizer.path or model.path"
            )
        if self.chat.use == "always" and self.responses_go_on:
            raise ValueError(
                f"chat.use: always needs rows with answers, but source: {self.source} has passages of a text"
            )
        if "{instruction}" not in self.template:
            raise ValueError("template must contain {instruction}")
        self._check_sources()
        if self.has_shares:
            self._check_shares()
        if self.has_articles:
            self._check_passages()
        return self

    def _check_sources(self) -> None:
        if self.sources and (self.path or self.source != "auto"):
            given = f"path: {self.path}" if self.path else f"source: {self.source}"
            raise ValueError(f"sources cannot be combined with {given}: name it in an entry of sources")
        weights = [source.weight for source in self.sources if source.weight is not None]
        if weights and len(weights) < len(self.sources):
            raise ValueError(
                f"{len(weights)} of {len(self.sources)} sources have a weight: give all of them one, or none"
            )
        hub = [key for key in HUB_KEYS if getattr(self, key) is not None]
        if hub and (self.source not in ROW_SOURCES or self.sources):
            raise ValueError(f"{hub[0]} is for a dataset on the hub that data.path names, owner/name")

    def _check_shares(self) -> None:
        shares = [size for size in self.sizes.values() if is_share(size)]
        if sum(shares) > 1 + 1e-9:
            terms = " + ".join(f"{name} {size:g}" for name, size in self.sizes.items() if is_share(size))
            raise ValueError(f"the shares of the splits, {terms} = {sum(shares):g}, are more than all rows")
        if self.source not in ROW_SOURCES:
            raise ValueError(
                f"a share of the rows of source: {self.source} is unknown before all of it is read: give train_rows, "
                "validation_rows and test_rows as numbers of rows"
            )

    @property
    def _example(self) -> str:
        return {"dolly": "dolly.jsonl", "wikidump": "enwiki.xml.bz2", "text": "wikitext.txt"}.get(
            self.source, "mine.jsonl"
        )

    def _check_passages(self) -> None:
        if self.tokenizer.path is None:
            raise ValueError(
                f"source: {self.source} cuts articles by tokens, so it needs an existing tokenizer: "
                "set data.tokenizer.path or model.path"
            )
        total, share = self.passages.tokens, self.passages.prompt_share
        prompt = self.passages.prompt_tokens(total)
        if prompt > self.max_prompt_tokens:
            raise ValueError(
                f"passages.prompt_share {share:g} of passages.tokens {total} gives prompts of {prompt} tokens, over "
                f"max_prompt_tokens {self.max_prompt_tokens}"
            )
        if total - prompt > self.max_response_tokens:  # a full passage has no EOS: its article goes on
            raise ValueError(
                f"passages.tokens {total} - prompt {prompt} = {total - prompt} tokens of continuation, over "
                f"max_response_tokens {self.max_response_tokens}: raise that, or lower passages.tokens"
            )
