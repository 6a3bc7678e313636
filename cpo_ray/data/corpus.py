"""Prepares instructions with their responses, from a file or from the synthetic task: reads, splits and tokenizes them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from rich.markup import escape

from cpo_ray.config import DataConfig, SourceConfig
from cpo_ray.data import dolly
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
from cpo_ray.data.tokenization import Tokenizer, encode, make_tokenizer
from cpo_ray.errors import DataError
from cpo_ray.monitoring.console import say


@dataclass(frozen=True)
class Corpus:
    """The usable rows in file order, each with its prompt and id."""

    rows: list[InstructionRow]
    log: SourceLog
    prompts: list[str]
    ids: list[str]


def prepare_instructions(data: DataConfig, seed: int) -> PreparedSource[int]:
    """Read, split and set up the tokenizer; everything before the cut to the configured lengths.

    Raises DataError for a file that is missing or empty, a bad line (unless quarantined), too few rows, or a tokenizer
    that cannot be loaded.
    """
    corpus = load_corpus(data, seed)
    bad = corpus.log.quarantined
    remark = f" {len(bad)} rows cannot be used; the first: {bad[0]}" if bad else ""
    splits = split_prompts(corpus.prompts, data.sizes, seed, remark)
    tokenizer = make_tokenizer(data.tokenizer, _texts(corpus, splits["train"]))
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
    return PreparedSource(
        tokenizer, splits, partial(_tokenize, corpus, tokenizer), corpus.log.quarantined, counts, answers
    )


def load_corpus(data: DataConfig, seed: int) -> Corpus:
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
    prompts = [
        row.instruction if row.is_prompt else apply_template(data.template, row.instruction, row.context)
        for row in rows
    ]
    return Corpus(rows, log, prompts, example_ids(rows, prompts))


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
    layout = layout_of(source, parts, hint)
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
        UncutExample(
            id=corpus.ids[index],
            source=corpus.rows[index].source,
            category=corpus.rows[index].category,
            prompt=corpus.prompts[index],
            response=corpus.rows[index].response,
            prompt_ids=prompt_ids,
            response_ids=response_ids,
            ends=corpus.rows[index].ends,
            answers=corpus.rows[index].answers,
            answer_ids=[next(answers) for _ in corpus.rows[index].answers[1:]],
        )
        for index, prompt_ids, response_ids in zip(indices, prompts, responses, strict=True)
    ]
