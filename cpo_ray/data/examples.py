"""Stage `data`: reads the source, splits it, tokenizes it and cuts the tokens to the configured lengths.

The texts in an Example stay whole; only its token ids are cut.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cpo_ray.artifacts import Summary, write_atomically, write_json, write_table
from cpo_ray.config import DataConfig, RunConfig
from cpo_ray.data.articles import prepare_articles
from cpo_ray.data.corpus import prepare_instructions
from cpo_ray.data.prepared import PreparedSource, UncutExample
from cpo_ray.data.reading import reads_in_parallel
from cpo_ray.data.rows import BadRow
from cpo_ray.data.sources import hub_part, list_parts, part_bytes
from cpo_ray.data.splits import SPLITS
from cpo_ray.data.template import check_template
from cpo_ray.data.tokenization import Tokenizer
from cpo_ray.errors import DataError
from cpo_ray.monitoring.console import progress_bar
from cpo_ray.records import (
    EXAMPLE_SCHEMA,
    RANKED_EXAMPLE_SCHEMA,
    Example,
    RankedExample,
    cut_prompt,
    end_response,
)

PART = "part-00000.parquet"
ENCODE_ROWS = 512  # rows tokenized at once
MANY_CUT = 0.25
"""The user is warned if a larger share of the responses is cut."""


@dataclass
class TruncationCounts:
    """How many prompts and responses were longer than the limits, and how many responses have no EOS."""

    prompts: int = 0
    responses: int = 0
    endings: int = 0  # responses that were cut and lost their EOS
    without_eos: int = 0  # cut, or a passage after which its article goes on
    boundaries: int = 0  # conversations of which the chat template's own tokenization is another one


def needs_ray(data: DataConfig) -> bool:
    """Whether the source has several files that Ray Data reads in parallel."""
    inputs = [list_parts(source.path, source.source, hub_part(source)) for source in data.inputs]
    if data.has_articles and data.files is not None:
        inputs = [list_parts(data.files, data.source)]
    return any(reads_in_parallel(list(map(part_bytes, parts))) for parts in inputs)


def prepare_examples(config: RunConfig, out: Path) -> Summary:
    """Fill `out` with `{train,validation,test}/part-00000.parquet` and `tokenizer/`.

    The schema is records.EXAMPLE_SCHEMA, or RANKED_EXAMPLE_SCHEMA if the data has ranked answers.

    Also writes `quarantine.jsonl` if rows were quarantined and, for the synthetic task, `answers.json`:
    `{"filler": [word], "answers": {example id: [word]}}` over all splits, for `synthetic.is_right`. Equal configurations
    give equal files. Returns counts and warnings for the console; token counts are means per row, EOS included. Ray must
    be initialised if `needs_ray`.

    Raises DataError for a file that is missing or empty, a bad line or a damaged file (unless quarantined), too few
    rows, or a tokenizer that cannot be loaded; ConfigError for a template that would lose instructions.
    """
    check_template(config.data.template)
    source = _prepare_source(config)
    source.tokenizer.save_pretrained(out / "tokenizer")

    schema = RANKED_EXAMPLE_SCHEMA if config.data.has_answers else EXAMPLE_SCHEMA
    truncated = TruncationCounts()
    tables: dict[str, pa.Table] = {}
    with progress_bar("data", sum(map(len, source.splits.values())), "rows") as progress:
        for name, rows in source.splits.items():
            pieces = [schema.empty_table()]
            for start in range(0, len(rows), ENCODE_ROWS):
                uncut = source.tokenize(rows[start : start + ENCODE_ROWS])
                examples = list(_cut(uncut, source.tokenizer, config.data, truncated))
                pieces.append(pa.Table.from_pylist(examples, schema=schema))
                progress.advance(len(uncut), name)
            tables[name] = pa.concat_tables(pieces).combine_chunks()
            write_table(out / name / PART, tables[name])

    if source.quarantined:
        _write_quarantine(out / "quarantine.jsonl", source.quarantined)
    if source.answers is not None:
        write_json(out / "answers.json", source.answers)
    return _summarize(source, tables, truncated, config.data.max_response_tokens)


def _prepare_source(config: RunConfig) -> PreparedSource[Any]:
    if config.data.has_articles and config.data.files is not None:
        return prepare_articles(config.data, config.seed, config.data.files)
    return prepare_instructions(config.data, config.seed)


def _cut(
    examples: Sequence[UncutExample], tokenizer: Tokenizer, data: DataConfig, truncated: TruncationCounts
) -> Iterator[Example]:
    """Cut prompts and responses that are too long (`cut_prompt`, `end_response`), and count both."""
    eos, special = tokenizer.eos_token_id, frozenset(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    for example in examples:
        if not example.prompt_ids or not example.response_ids:
            raise DataError(f"row {example.id} has a text without tokens: {example.prompt!r} -> {example.response!r}")
        response_ids = end_response(example.response_ids, eos, data.max_response_tokens, ends=example.ends)
        truncated.prompts += len(example.prompt_ids) > data.max_prompt_tokens or example.is_shortened
        truncated.boundaries += example.differs
        is_cut = len(example.response_ids) + example.ends > data.max_response_tokens
        truncated.responses += is_cut
        truncated.endings += is_cut and example.ends
        truncated.without_eos += response_ids[-1] != eos
        row = Example(
            id=example.id,
            source=example.source,
            category=example.category,
            prompt=example.prompt,
            response=example.response,
            prompt_ids=cut_prompt(example.prompt_ids, data.max_prompt_tokens, special),
            response_ids=response_ids,
        )
        yield _with_answers(row, example, eos, data.max_response_tokens) if data.has_answers else row


def _with_answers(row: Example, example: UncutExample, eos: int, max_tokens: int) -> RankedExample:
    """The row with the other answers, cut like the response."""
    scores = [answer.score for answer in example.answers if answer.score is not None]
    return RankedExample(
        **row,
        answer_text=[answer.text for answer in example.answers[1:]],
        answer_ids=[end_response(ids, eos, max_tokens) for ids in example.answer_ids],
        answer_rank=[answer.rank for answer in example.answers[1:]],
        answer_score=scores or None,
    )


def _write_quarantine(path: Path, bad_rows: Sequence[BadRow]) -> None:
    """Write the rows in file order: parts that are read in parallel finish in any order."""
    bad_rows = sorted(bad_rows, key=lambda row: (row.file, row.line or 0, row.byte or 0))
    with write_atomically(path) as temporary:
        lines = [json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in bad_rows]
        temporary.write_text("".join(lines), encoding="utf-8")


def _summarize(
    source: PreparedSource[Any], tables: dict[str, pa.Table], truncated: TruncationCounts, max_response_tokens: int
) -> Summary:
    seen = set(map(tuple, tables["train"]["prompt_ids"].to_pylist()))
    summary: dict[str, Any] = {f"{name}_rows": len(tables[name]) for name in SPLITS}
    # Before the source's own counts: the console's line about the stage has room for a dozen numbers.
    summary |= {
        "truncated_prompts": truncated.prompts,
        "truncated_responses": truncated.responses,
        "responses_without_eos": truncated.without_eos,
    }
    summary |= {"quarantined_rows": len(source.quarantined)} | source.counts
    summary |= {
        # Different prompts may become equal when both are cut, which happens after the split.
        "test_prompts_in_train_once_cut": sum(tuple(ids) in seen for ids in tables["test"]["prompt_ids"].to_pylist()),
        "vocabulary": len(source.tokenizer),
    }
    if truncated.boundaries:
        summary["other_chat_boundaries"] = truncated.boundaries
    for name, table in tables.items():
        if len(table):
            for column in ("prompt", "response"):
                mean = pc.mean(pc.list_value_length(table[f"{column}_ids"])).as_py()
                summary[f"{name}_{column}_tokens"] = round(mean, 1)
    summary["warnings"] = _warnings(truncated, sum(map(len, tables.values())), max_response_tokens)
    return summary


def _warnings(truncated: TruncationCounts, rows: int, max_response_tokens: int) -> list[str]:
    warnings = []
    if truncated.endings > MANY_CUT * rows:
        warnings.append(
            f"{truncated.endings:,} of {rows:,} responses ({truncated.endings / rows:.0%}) are cut to "
            f"data.max_response_tokens {max_response_tokens} and have no EOS: from them the model does not learn where an "
            "answer ends. Raise data.max_response_tokens."
        )
    if truncated.boundaries:
        warnings.append(
            f"of {truncated.boundaries:,} of {rows:,} conversations the chat template's own tokenization is another one: a "
            "token joins the prompt and the answer. They are kept as they are generated, with a boundary between both."
        )
    return warnings
