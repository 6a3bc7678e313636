"""Stage `data`: read the source, apply the template, split, tokenize, cut.

A row's text stays whole in an Example; only its token ids are cut to the configured lengths.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa

from cpo_ray.artifacts import Summary, write_atomically, write_json, write_table
from cpo_ray.config import DataConfig, RunConfig
from cpo_ray.data.dolly import read_dolly
from cpo_ray.data.rows import BadRow, Row, content_hash
from cpo_ray.data.splits import SPLITS, split_prompts
from cpo_ray.data.synthetic import filler_words, synthetic_rows
from cpo_ray.data.template import apply_template, check_template
from cpo_ray.data.tokenization import Tokenizer, encode, make_tokenizer
from cpo_ray.errors import DataError
from cpo_ray.progress import bar
from cpo_ray.records import EXAMPLE_SCHEMA, Example

PART = "part-00000.parquet"
ENCODE_ROWS = 512  # rows tokenized at once


@dataclass
class Cuts:
    """What the length limits cut."""

    prompts: int = 0
    responses: int = 0


@dataclass(frozen=True)
class Corpus:
    """The usable rows in file order, each with its prompt and its id."""

    rows: list[Row]
    quarantined: list[BadRow]
    prompts: list[str]
    ids: list[str]


def prepare_examples(config: RunConfig, out: Path) -> Summary:
    """Fill `out` with `{train,validation,test}/part-00000.parquet` (records.EXAMPLE_SCHEMA) and `tokenizer/`.

    Also writes `quarantine.jsonl` where rows were quarantined and, for the synthetic task, `answers.json`:
    `{"filler": [word], "answers": {example id: [word]}}` over all splits, as `synthetic.is_right` reads them. Equal
    configurations give equal files. Returns counts worth printing; token counts are means per row, EOS included.

    Raises DataError for a file that is missing or empty, a bad line (unless quarantined), too few rows, or a
    tokenizer that cannot be loaded; ConfigError for a template that would lose instructions.
    """
    check_template(config.data.template)
    corpus = gather(config)
    sizes = {name: getattr(config.data, f"{name}_rows") for name in SPLITS}
    splits = split_prompts(corpus.prompts, sizes, config.seed)

    tokenizer = make_tokenizer(config.data.tokenizer, _texts(corpus, splits["train"]))
    tokenizer.save_pretrained(out / "tokenizer")

    cuts = Cuts()
    examples: dict[str, list[Example]] = {}
    with bar("data", sum(sizes.values()), "rows") as progress:
        for name, indices in splits.items():
            examples[name] = []
            for start in range(0, len(indices), ENCODE_ROWS):
                part = indices[start : start + ENCODE_ROWS]
                examples[name] += _tokenize(corpus, part, tokenizer, config.data, cuts)
                progress.advance(len(part), name)
            write_table(out / name / PART, pa.Table.from_pylist(examples[name], schema=EXAMPLE_SCHEMA))

    if corpus.quarantined:
        _write_quarantine(out / "quarantine.jsonl", corpus.quarantined)
    if config.data.source == "synthetic":
        answers = {corpus.ids[row]: corpus.rows[row].answer for indices in splits.values() for row in indices}
        write_json(out / "answers.json", {"filler": filler_words(), "answers": answers})
    return _summarize(corpus, examples, cuts, len(tokenizer))


def gather(config: RunConfig) -> Corpus:
    """Read the source whole, and give every row its prompt and its id.

    Raises DataError at the first bad line, unless the configuration has such lines quarantined.
    """
    rows: list[Row] = []
    quarantined: list[BadRow] = []
    for row in _read_source(config):
        if isinstance(row, Row):
            rows.append(row)
        elif config.data.on_bad_row == "quarantine":
            quarantined.append(row)
        else:
            raise DataError(f"{row}. Mend the line, or set data.on_bad_row=quarantine to leave such rows out, counted.")
    prompts = [apply_template(config.data.template, row.instruction, row.context) for row in rows]
    return Corpus(rows, quarantined, prompts, example_ids(rows, prompts))


def _read_source(config: RunConfig) -> Iterator[Row | BadRow]:
    data = config.data
    if data.source == "dolly" and data.path is not None:
        return read_dolly(data.path)
    return islice(synthetic_rows(config.seed), data.train_rows + data.validation_rows + data.test_rows)


def example_ids(rows: Sequence[Row], prompts: Sequence[str]) -> list[str]:
    """16 hex digits of the content's hash. The second copy of a row hashes an ordinal with it, and so on."""
    copies: Counter[tuple[str, str, str]] = Counter()
    ids = []
    for row, prompt in zip(rows, prompts, strict=True):
        content = (row.source, prompt, row.response)
        ids.append(content_hash(*content, *([copies[content]] if copies[content] else []))[:16])
        copies[content] += 1
    return ids


def _texts(corpus: Corpus, indices: Sequence[int]) -> Iterator[str]:
    for index in indices:
        yield corpus.prompts[index]
        yield corpus.rows[index].response


def _tokenize(
    corpus: Corpus, indices: Sequence[int], tokenizer: Tokenizer, data: DataConfig, cuts: Cuts
) -> list[Example]:
    """Prompt and response apart, so that training and generation see the same boundary."""
    prompts = encode(tokenizer, [corpus.prompts[index] for index in indices], special=True)
    responses = encode(tokenizer, [corpus.rows[index].response for index in indices], special=False)
    examples = []
    for index, prompt_ids, response_ids in zip(indices, prompts, responses, strict=True):
        row = corpus.rows[index]
        if not prompt_ids or not response_ids:
            raise DataError(
                f"row {corpus.ids[index]} has a text without tokens: {row.instruction!r} -> {row.response!r}"
            )
        cuts.prompts += len(prompt_ids) > data.max_prompt_tokens
        cuts.responses += len(response_ids) >= data.max_response_tokens
        examples.append(
            Example(
                id=corpus.ids[index],
                source=row.source,
                category=row.category,
                prompt=corpus.prompts[index],
                response=row.response,
                prompt_ids=prompt_ids[-data.max_prompt_tokens :],
                response_ids=[*response_ids[: data.max_response_tokens - 1], tokenizer.eos_token_id],
            )
        )
    return examples


def _write_quarantine(path: Path, bad_rows: Sequence[BadRow]) -> None:
    with write_atomically(path) as temporary:
        lines = [json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in bad_rows]
        temporary.write_text("".join(lines), encoding="utf-8")


def _summarize(corpus: Corpus, examples: dict[str, list[Example]], cuts: Cuts, vocabulary: int) -> Summary:
    contents = {(prompt, row.response) for prompt, row in zip(corpus.prompts, corpus.rows, strict=True)}
    seen = {tuple(example["prompt_ids"]) for example in examples["train"]}
    summary: dict[str, Any] = {f"{name}_rows": len(examples[name]) for name in SPLITS}
    summary |= {
        "unused_rows": len(corpus.rows) - sum(map(len, examples.values())),
        "quarantined_rows": len(corpus.quarantined),
        "duplicate_rows": len(corpus.rows) - len(contents),
        "repeated_prompts": len(corpus.rows) - len(set(corpus.prompts)),
        "truncated_prompts": cuts.prompts,
        "truncated_responses": cuts.responses,
        # Different prompts may become equal where both are cut: the split cannot know.
        "test_prompts_in_train_once_cut": sum(tuple(example["prompt_ids"]) in seen for example in examples["test"]),
        "vocabulary": vocabulary,
    }
    for name, rows in examples.items():
        if rows:
            summary[f"{name}_prompt_tokens"] = round(fmean(len(row["prompt_ids"]) for row in rows), 1)
            summary[f"{name}_response_tokens"] = round(fmean(len(row["response_ids"]) for row in rows), 1)
    return summary
