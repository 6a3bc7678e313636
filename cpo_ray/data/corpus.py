"""Prepares instructions with their responses, from a file or from the synthetic task: reads, splits and tokenizes them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

from cpo_ray.config import DataConfig
from cpo_ray.data import dolly
from cpo_ray.data.instructions import read_instructions
from cpo_ray.data.prepared import PreparedSource, SourceLog, UncutExample
from cpo_ray.data.python_docs import python_docs_rows
from cpo_ray.data.reading import list_and_report, read_chunks
from cpo_ray.data.rows import BadRow, FileFormat, InstructionRow, ReadingCounts, content_hash
from cpo_ray.data.splits import SPLITS, split_prompts
from cpo_ray.data.synthetic import filler_words, synthetic_rows
from cpo_ray.data.template import apply_template
from cpo_ray.data.tokenization import Tokenizer, encode, make_tokenizer
from cpo_ray.errors import DataError

FoundInFile = FileFormat | InstructionRow | BadRow | ReadingCounts


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
    sizes = {name: getattr(data, f"{name}_rows") for name in SPLITS}
    bad = corpus.log.quarantined
    remark = f" {len(bad)} rows cannot be used; the first: {bad[0]}" if bad else ""
    splits = split_prompts(corpus.prompts, sizes, seed, remark)
    tokenizer = make_tokenizer(data.tokenizer, _texts(corpus, splits["train"]))
    contents = {(prompt, row.response) for prompt, row in zip(corpus.prompts, corpus.rows, strict=True)}
    counts = {
        "unused_rows": len(corpus.rows) - sum(sizes.values()),
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
    rows = list(log.rows(_read_source(data, seed)))
    _check_contexts(data, len(rows), log)
    prompts = [apply_template(data.template, row.instruction, row.context) for row in rows]
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


def _check_contexts(data: DataConfig, rows: int, log: SourceLog) -> None:
    """A row without the key of the context has none; but if it is absent from all rows, the name is wrong."""
    if rows and log.counts["rows_without_context_key"] >= rows:
        key = dolly.FIELDS.context if data.source == "dolly" else data.fields.context
        raise DataError(
            f"no row has the key {key!r} that data.fields.context names; the first one has {', '.join(log.keys)}. Correct the "
            "name, or leave out data.fields.context if no row has a context."
        )


def _read_source(data: DataConfig, seed: int) -> Iterable[FoundInFile]:
    if data.source == "python_docs":
        return python_docs_rows()
    if data.files is None:
        return islice(synthetic_rows(seed), data.train_rows + data.validation_rows + data.test_rows)
    return _read_files(data, data.files)


def _read_files(data: DataConfig, path: str) -> Iterator[FoundInFile]:
    """The rows in file order, also if several files are read in parallel."""
    is_dolly = data.source == "dolly"
    fields = dolly.FIELDS if is_dolly else data.fields
    reader = partial(read_instructions, fields=fields, source=data.source)
    chunks = list(read_chunks(list_and_report(path, data.source), reader, dolly.HINT if is_dolly else ""))
    for chunk in sorted(chunks, key=lambda chunk: (chunk.part, chunk.number)):
        yield from chunk.records


def _texts(corpus: Corpus, indices: Sequence[int]) -> Iterator[str]:
    for index in indices:
        yield corpus.prompts[index]
        yield corpus.rows[index].response


def _tokenize(corpus: Corpus, tokenizer: Tokenizer, indices: Sequence[int]) -> list[UncutExample]:
    """Tokenize prompt and response separately, so that training and generation have the same token boundary."""
    prompts = encode(tokenizer, [corpus.prompts[index] for index in indices], special=True)
    responses = encode(tokenizer, [corpus.rows[index].response for index in indices], special=False)
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
        )
        for index, prompt_ids, response_ids in zip(indices, prompts, responses, strict=True)
    ]
