"""Prepares instructions with their responses, from a file or from the synthetic task: reads, splits and tokenizes them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

from rich.markup import escape

from cpo_ray.config import DataConfig, SourceConfig
from cpo_ray.data import dolly
from cpo_ray.data.chat_rows import RenderedRow, refuse_tools, render_rows, tokenize_chats
from cpo_ray.data.chat_template import ChatTemplate, find_chat_template
from cpo_ray.data.instructions import read_rows
from cpo_ray.data.layouts import PREFERENCES, RowLayout, layout_of
from cpo_ray.data.mixing import mix
from cpo_ray.data.preferences import RatedRow, arrange, read_preferences
from cpo_ray.data.prepared import PreparedSource, SourceLog, UncutExample
from cpo_ray.data.python_docs import python_docs_rows
from cpo_ray.data.reading import Reader, list_and_report, read_chunks
from cpo_ray.data.rows import InstructionRow, content_hash
from cpo_ray.data.sources import hub_part
from cpo_ray.data.splits import SPLITS, split_prompts
from cpo_ray.data.synthetic import filler_words, synthetic_rows
from cpo_ray.data.template import apply_template
from cpo_ray.data.tokenization import Tokenizer, encode, load_tokenizer, make_tokenizer
from cpo_ray.errors import DataError
from cpo_ray.monitoring.console import say
from cpo_ray.records import Tokens


@dataclass(frozen=True)
class Corpus:
    """The usable rows in file order, each with its prompt and id; with a chat template, also as it renders them."""

    rows: list[InstructionRow]
    log: SourceLog
    prompts: list[str]
    ids: list[str]
    rendered: Sequence[RenderedRow] = ()


def prepare_instructions(data: DataConfig, seed: int) -> PreparedSource[int]:
    """Read, split and set up the tokenizer; everything before the cut to the configured lengths.

    Raises DataError for a file that is missing or empty, a bad line (unless quarantined), too few rows, or a tokenizer
    that cannot be loaded.
    """
    loaded = load_tokenizer(data.tokenizer.path) if data.tokenizer.path is not None else None
    chat = find_chat_template(data.chat, loaded) if loaded is not None and not data.responses_go_on else None
    if chat is not None:
        say(f"  prompts are rendered by the tokenizer's chat template; {escape(chat.end)} ends an answer")
    corpus = load_corpus(data, seed, chat)
    bad = corpus.log.quarantined
    remark = f" {len(bad)} rows cannot be used; the first: {bad[0]}" if bad else ""
    keys = [row.key or prompt for row, prompt in zip(corpus.rows, corpus.prompts, strict=True)]
    splits = split_prompts(keys, data.sizes, seed, remark)
    tokenizer = loaded if loaded is not None else make_tokenizer(data.tokenizer, _texts(corpus, splits["train"]))
    contents = {(prompt, row.response) for prompt, row in zip(corpus.prompts, corpus.rows, strict=True)}
    counts = {
        "unused_rows": len(corpus.rows) - sum(map(len, splits.values())),
        "duplicate_rows": len(corpus.rows) - len(contents),
        "repeated_prompts": len(corpus.rows) - len(set(corpus.prompts)),
        **corpus.log.summary,
    }
    answers = None
    if data.source == "synthetic":
        used = (row for indices in splits.values() for row in indices)
        answers = {"filler": filler_words(), "answers": {corpus.ids[row]: corpus.rows[row].answer for row in used}}
    tokenize = partial(_tokenize, corpus, tokenizer)
    if chat is not None:
        tokenize = partial(_tokenize_chats, corpus, chat, data.max_prompt_tokens)
    return PreparedSource(tokenizer, splits, tokenize, corpus.log.quarantined, counts, answers)


def load_corpus(data: DataConfig, seed: int, chat: ChatTemplate | None = None) -> Corpus:
    """Read the whole source and give every row its prompt and id. `seed` is for the synthetic task.

    Raises DataError at the first bad line, unless the configuration quarantines bad lines, and if no row has the key of
    the context.
    """
    log = SourceLog(data)
    if data.source == "synthetic":
        rows = list(islice(synthetic_rows(seed), sum(map(data.rows, SPLITS))))
    elif data.source == "python_docs":
        rows = list(python_docs_rows())
    else:
        rows = mix([_read_input(source, data, seed, log) for source in data.inputs], data.inputs, seed, log)
    if chat is None:
        rows = list(log.rows(refuse_tools(rows)))
        prompts = [_prompt(row, data.template) for row in rows]
        return Corpus(rows, log, prompts, example_ids(rows, prompts))
    texts = [row.instruction if row.chat else _prompt(row, data.template).strip() for row in rows]
    rendered: list[RenderedRow] = list(log.rows(render_rows(rows, texts, chat)))
    rows, texts = [found.row for found in rendered], [found.text for found in rendered]
    return Corpus(rows, log, texts, example_ids(rows, texts), rendered)


def _prompt(row: InstructionRow, template: str) -> str:
    """The row's prompt without a chat template."""
    return row.instruction if row.is_prompt else apply_template(template, row.instruction, row.context)


def example_ids(rows: Sequence[InstructionRow], prompts: Sequence[str]) -> list[str]:
    """16 hex digits of a hash of the content. For the n-th copy of a row, the hash includes n."""
    copies: Counter[tuple[str, str, str]] = Counter()
    ids = []
    for row, prompt in zip(rows, prompts, strict=True):
        content = (row.source, prompt, row.response)
        ids.append(content_hash(*content, *([copies[content]] if copies[content] else []))[:16])
        copies[content] += 1
    return ids


def _read_input(source: SourceConfig, data: DataConfig, seed: int, log: SourceLog) -> list[InstructionRow]:
    """The rows of one source in file order."""
    hint = dolly.HINT if source.source == "dolly" else ""
    parts = list_and_report(source.path, source.source, hub_part(source))
    layout = replace(layout_of(source, parts, hint), every_answer=data.chat.turns == "every")
    if layout.name == PREFERENCES:
        rated: list[RatedRow] = list(log.rows(_read_parts(parts, partial(read_preferences, layout=layout))))
        return list(log.rows(arrange(rated, seed, data.max_answers, log.counts)))
    if source.source == "auto":
        say(f"  rows of {escape(parts[0])} are in the layout `{layout.name}`")
    own = SourceLog(data)
    rows = list(own.rows(_read_parts(parts, partial(read_rows, layout=layout), hint)))
    _check_contexts(layout, len(rows), own)
    log.add(own)
    return rows


def _read_parts(parts: Sequence[str], reader: Reader, hint: str = "") -> Iterator[Any]:
    """The records of all parts in file order, also if they are read in parallel."""
    chunks = list(read_chunks(parts, reader, hint))
    for chunk in sorted(chunks, key=lambda chunk: (chunk.part, chunk.number)):
        yield from chunk.records


def _check_contexts(layout: RowLayout, rows: int, log: SourceLog) -> None:
    """A row without the key of the context has none; but if it is absent from all rows, the name is wrong."""
    if rows and log.counts["rows_without_context_key"] >= rows:
        raise DataError(
            f"no row has the key {layout.fields.context!r} that data.fields.context names; the first one has "
            f"{', '.join(log.keys)}. Correct the name, or leave out data.fields.context if no row has a context."
        )


def _texts(corpus: Corpus, indices: Sequence[int]) -> Iterator[str]:
    for index in indices:
        yield corpus.prompts[index]
        yield corpus.rows[index].response


def _tokenize(corpus: Corpus, tokenizer: Tokenizer, indices: Sequence[int]) -> list[UncutExample]:
    """Tokenize prompt and response separately, so that training and generation have the same token boundary."""
    prompts = encode(tokenizer, [corpus.prompts[index] for index in indices], special=True)
    responses = encode(tokenizer, [corpus.rows[index].response for index in indices], special=False)
    others = [answer.text for index in indices for answer in corpus.rows[index].answers[1:]]
    answers = iter(encode(tokenizer, others, special=False) if others else ())
    return [
        _example(corpus, index, prompt_ids, response_ids, [next(answers) for _ in corpus.rows[index].answers[1:]])
        for index, prompt_ids, response_ids in zip(indices, prompts, responses, strict=True)
    ]


def _tokenize_chats(
    corpus: Corpus, chat: ChatTemplate, max_prompt_tokens: int, indices: Sequence[int]
) -> list[UncutExample]:
    """Tokenize the rows as the chat template renders them."""
    rendered = [corpus.rendered[index] for index in indices]
    return [
        _example(corpus, index, tokens.prompt, tokens.response, tokens.others)._replace(
            is_shortened=tokens.is_shortened, differs=tokens.differs
        )
        for index, tokens in zip(indices, tokenize_chats(rendered, chat, max_prompt_tokens), strict=True)
    ]


def _example(
    corpus: Corpus, index: int, prompt_ids: Tokens, response_ids: Tokens, answer_ids: list[Tokens]
) -> UncutExample:
    row = corpus.rows[index]
    return UncutExample(
        id=corpus.ids[index],
        source=row.source,
        category=row.category,
        prompt=corpus.prompts[index],
        response=row.response,
        prompt_ids=prompt_ids,
        response_ids=response_ids,
        ends=row.ends,
        answers=row.answers,
        answer_ids=answer_ids,
    )
