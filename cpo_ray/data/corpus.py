"""Instructions with their responses, from a file or from the embedded task: read, split, tokenized."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

from cpo_ray.config import DataConfig, RunConfig
from cpo_ray.data import dolly
from cpo_ray.data.instructions import read_instructions
from cpo_ray.data.prepared import Draft, Material, take_good
from cpo_ray.data.reading import read_chunks
from cpo_ray.data.rows import BadRow, Row, content_hash
from cpo_ray.data.sources import list_parts
from cpo_ray.data.splits import SPLITS, split_prompts
from cpo_ray.data.synthetic import filler_words, synthetic_rows
from cpo_ray.data.template import apply_template
from cpo_ray.data.tokenization import Tokenizer, encode, make_tokenizer


@dataclass(frozen=True)
class Corpus:
    """The usable rows in the order of the files, each with its prompt and its id."""

    rows: list[Row]
    quarantined: list[BadRow]
    prompts: list[str]
    ids: list[str]


def instruction_material(config: RunConfig) -> Material[int]:
    """Everything up to the cut to the configured lengths.

    Raises DataError for a file that is missing or empty, a bad line (unless quarantined), too few rows, or a tokenizer
    that cannot be loaded.
    """
    corpus = gather(config)
    sizes = {name: getattr(config.data, f"{name}_rows") for name in SPLITS}
    splits = split_prompts(corpus.prompts, sizes, config.seed)
    tokenizer = make_tokenizer(config.data.tokenizer, _texts(corpus, splits["train"]))
    contents = {(prompt, row.response) for prompt, row in zip(corpus.prompts, corpus.rows, strict=True)}
    counts = {
        "unused_rows": len(corpus.rows) - sum(sizes.values()),
        "duplicate_rows": len(corpus.rows) - len(contents),
        "repeated_prompts": len(corpus.rows) - len(set(corpus.prompts)),
    }
    answers = None
    if config.data.source == "synthetic":
        used = (row for indices in splits.values() for row in indices)
        answers = {"filler": filler_words(), "answers": {corpus.ids[row]: corpus.rows[row].answer for row in used}}
    return Material(tokenizer, splits, partial(_draft, corpus, tokenizer), corpus.quarantined, counts, answers)


def gather(config: RunConfig) -> Corpus:
    """Read the source whole, and give every row its prompt and its id.

    Raises DataError at the first bad line, unless the configuration has such lines quarantined.
    """
    quarantined: list[BadRow] = []
    rows = list(take_good(_read_source(config), config.data, quarantined))
    prompts = [apply_template(config.data.template, row.instruction, row.context) for row in rows]
    return Corpus(rows, quarantined, prompts, example_ids(rows, prompts))


def example_ids(rows: Sequence[Row], prompts: Sequence[str]) -> list[str]:
    """16 hex digits of the content's hash. The second copy of a row hashes an ordinal with it, and so on."""
    copies: Counter[tuple[str, str, str]] = Counter()
    ids = []
    for row, prompt in zip(rows, prompts, strict=True):
        content = (row.source, prompt, row.response)
        ids.append(content_hash(*content, *([copies[content]] if copies[content] else []))[:16])
        copies[content] += 1
    return ids


def _read_source(config: RunConfig) -> Iterable[Row | BadRow]:
    data = config.data
    if data.files is None:
        return islice(synthetic_rows(config.seed), data.train_rows + data.validation_rows + data.test_rows)
    return _read_files(data, data.files)


def _read_files(data: DataConfig, path: str) -> Iterator[Row | BadRow]:
    """The rows in the order of the files, however many are read at once."""
    is_dolly = data.source == "dolly"
    fields = dolly.FIELDS if is_dolly else data.fields
    reader = partial(read_instructions, fields=fields, source=data.source)
    chunks = list(read_chunks(list_parts(path, data.source), reader, dolly.HINT if is_dolly else ""))
    for chunk in sorted(chunks, key=lambda chunk: (chunk.part, chunk.number)):
        yield from chunk.records


def _texts(corpus: Corpus, indices: Sequence[int]) -> Iterator[str]:
    for index in indices:
        yield corpus.prompts[index]
        yield corpus.rows[index].response


def _draft(corpus: Corpus, tokenizer: Tokenizer, indices: Sequence[int]) -> list[Draft]:
    """Prompt and response apart, so that training and generation see the same boundary."""
    prompts = encode(tokenizer, [corpus.prompts[index] for index in indices], special=True)
    responses = encode(tokenizer, [corpus.rows[index].response for index in indices], special=False)
    return [
        Draft(
            id=corpus.ids[index],
            source=corpus.rows[index].source,
            category=corpus.rows[index].category,
            prompt=corpus.prompts[index],
            response=corpus.rows[index].response,
            prompt_ids=prompt_ids,
            response_ids=response_ids,
        )
        for index, prompt_ids, response_ids in zip(indices, prompts, responses, strict=True)
    ]
