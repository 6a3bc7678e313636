"""Stage `data`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cpo_ray.config.section import Section

EMBEDDED = ("synthetic", "python_docs")
"""Sources that need no file."""


class TokenizerConfig(Section):
    """The tokenizer: trained on the training split, or loaded."""

    path: str | None = None
    """A directory (a Hugging Face tokenizer, or GPT-2 style `*vocab.json` and `*merges.txt`) or a hub id.
    Default: the tokenizer of `model.path`. Without that, a byte-level BPE is trained on the training split."""
    vocabulary_size: Annotated[int, Field(ge=300, le=500_000)] = 1024
    """Size of the trained vocabulary. Not used with `path`."""


class FieldsConfig(Section):
    """Names of the fields of a row (`source: instructions`). Their values must be text. A row without the field `instruction`
    but with `messages` (or ShareGPT's `conversations`) is a conversation, see [Data](data.md#conversations)."""

    instruction: str = "instruction"
    """The instruction or question. It must not be empty."""
    context: str | None = None
    """Text that the instruction refers to; it may be empty, null or absent. Default: no row has a context."""
    response: str = "response"
    """The ground-truth response. It must not be empty."""
    category: str | None = None
    """A label that the report groups rows by. Default: none."""


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

    source: Literal["synthetic", "python_docs", "dolly", "instructions", "wikidump", "text"] = "synthetic"
    """`synthetic` (generated questions with checkable answers) and `python_docs` (passages of the documentation in Python's
    standard library: real text, PSF license) are embedded and need no file. The others read `path`: `dolly`
    databricks-dolly-15k's JSONL, `instructions` JSON lines, a JSON array or Parquet with the fields named in `fields`,
    `wikidump` MediaWiki dumps, `text` plain text. The content decides the format, and whether it is compressed (gzip, bzip2,
    xz, zstd)."""
    path: str | None = None
    """The data: a file, a folder, a pattern (`dumps/*.xml*.bz2`) or an fsspec URL of one (`s3://...`, `hf://datasets/...`);
    for `dolly` and `instructions` also a dataset on the Hugging Face hub (`owner/name`). Required for every source that is not
    embedded. Several large files are read in parallel."""
    fields: FieldsConfig = FieldsConfig()
    """Only for `instructions`."""
    passages: PassagesConfig = PassagesConfig()
    """Only for `wikidump` and `text`."""
    train_rows: Annotated[int, Field(ge=1)] = 3000
    """Rows of the training split (the paper: 7505 of Dolly)."""
    validation_rows: Annotated[int, Field(ge=0)] = 200
    """Rows held out for tuning. They are taken from the rows for training, never from the test rows."""
    test_rows: Annotated[int, Field(ge=1)] = 500
    """Rows of the test split (the paper: 7506 of Dolly). A prompt is never in two splits."""
    template: str = "{instruction}\n{context}\n"
    """The prompt, with `{instruction}` and `{context}`. For a row without context, the line with `{context}` is removed."""
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
        """The files to read: `path`, or None for an embedded source."""
        return None if self.source in EMBEDDED else self.path

    @property
    def has_articles(self) -> bool:
        """Whether the source has articles, which are cut into passages, instead of instructions with responses."""
        return self.source in {"wikidump", "text"}

    @property
    def responses_go_on(self) -> bool:
        """Whether a response is a part of a text that goes on after it, so that it has no EOS."""
        return self.has_articles or self.source == "python_docs"

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        if self.source not in EMBEDDED and not self.path:
            raise ValueError(
                f"source: {self.source} needs data.path (for instance --set data.path=/data/{self._example})"
            )
        if "{instruction}" not in self.template:
            raise ValueError("template must contain {instruction}")
        if self.has_articles:
            self._check_passages()
        return self

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
