"""Stage `data`: read the source, split, tokenize, cut.

A row's text stays whole in an Example; only its token ids are cut to the configured lengths.
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
from cpo_ray.data.articles import article_material
from cpo_ray.data.corpus import instruction_material
from cpo_ray.data.prepared import Draft, Material
from cpo_ray.data.reading import reads_in_parallel
from cpo_ray.data.rows import BadRow
from cpo_ray.data.sources import list_parts, part_bytes
from cpo_ray.data.splits import SPLITS
from cpo_ray.data.template import check_template
from cpo_ray.errors import DataError
from cpo_ray.monitoring.console import bar
from cpo_ray.records import EXAMPLE_SCHEMA, Example

PART = "part-00000.parquet"
ENCODE_ROWS = 512  # rows tokenized at once


@dataclass
class Cuts:
    """What the length limits cut."""

    prompts: int = 0
    responses: int = 0


def needs_ray(data: DataConfig) -> bool:
    """Whether the source has several files that Ray Data reads side by side."""
    return data.files is not None and reads_in_parallel(list(map(part_bytes, list_parts(data.files, data.source))))


def prepare_examples(config: RunConfig, out: Path) -> Summary:
    """Fill `out` with `{train,validation,test}/part-00000.parquet` (records.EXAMPLE_SCHEMA) and `tokenizer/`.

    Also writes `quarantine.jsonl` where rows were quarantined and, for the synthetic task, `answers.json`:
    `{"filler": [word], "answers": {example id: [word]}}` over all splits, as `synthetic.is_right` reads them. Equal
    configurations give equal files. Returns counts worth printing; token counts are means per row, EOS included.
    Ray must be initialised where the source `needs_ray`.

    Raises DataError for a file that is missing or empty, a bad line or a damaged file (unless quarantined), too few
    rows, or a tokenizer that cannot be loaded; ConfigError for a template that would lose instructions.
    """
    check_template(config.data.template)
    material = _gather(config)
    material.tokenizer.save_pretrained(out / "tokenizer")

    cuts = Cuts()
    tables: dict[str, pa.Table] = {}
    with bar("data", sum(map(len, material.splits.values())), "rows") as progress:
        for name, rows in material.splits.items():
            pieces = [EXAMPLE_SCHEMA.empty_table()]
            for start in range(0, len(rows), ENCODE_ROWS):
                drafts = material.draft(rows[start : start + ENCODE_ROWS])
                examples = list(_cut(drafts, material.tokenizer.eos_token_id, config.data, cuts))
                pieces.append(pa.Table.from_pylist(examples, schema=EXAMPLE_SCHEMA))
                progress.advance(len(drafts), name)
            tables[name] = pa.concat_tables(pieces).combine_chunks()
            write_table(out / name / PART, tables[name])

    if material.quarantined:
        _write_quarantine(out / "quarantine.jsonl", material.quarantined)
    if material.answers is not None:
        write_json(out / "answers.json", material.answers)
    return _summarize(material, tables, cuts)


def _gather(config: RunConfig) -> Material[Any]:
    if config.data.has_articles and config.data.files is not None:
        return article_material(config, config.data.files)
    return instruction_material(config)


def _cut(drafts: Sequence[Draft], eos: int, data: DataConfig, cuts: Cuts) -> Iterator[Example]:
    """A prompt that is too long keeps its end, a response its beginning; both are counted."""
    for draft in drafts:
        if not draft.prompt_ids or not draft.response_ids:
            raise DataError(f"row {draft.id} has a text without tokens: {draft.prompt!r} -> {draft.response!r}")
        cuts.prompts += len(draft.prompt_ids) > data.max_prompt_tokens
        cuts.responses += len(draft.response_ids) >= data.max_response_tokens
        yield Example(
            id=draft.id,
            source=draft.source,
            category=draft.category,
            prompt=draft.prompt,
            response=draft.response,
            prompt_ids=list(draft.prompt_ids[-data.max_prompt_tokens :]),
            response_ids=[*draft.response_ids[: data.max_response_tokens - 1], eos],
        )


def _write_quarantine(path: Path, bad_rows: Sequence[BadRow]) -> None:
    """In the order of the files: parts are read side by side, and the first to be done is another each time."""
    bad_rows = sorted(bad_rows, key=lambda row: (row.file, row.line or 0, row.byte or 0))
    with write_atomically(path) as temporary:
        lines = [json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in bad_rows]
        temporary.write_text("".join(lines), encoding="utf-8")


def _summarize(material: Material[Any], tables: dict[str, pa.Table], cuts: Cuts) -> Summary:
    seen = set(map(tuple, tables["train"]["prompt_ids"].to_pylist()))
    summary: dict[str, Any] = {f"{name}_rows": len(tables[name]) for name in SPLITS}
    summary |= {"quarantined_rows": len(material.quarantined)} | material.counts
    summary |= {
        "truncated_prompts": cuts.prompts,
        "truncated_responses": cuts.responses,
        # Different prompts may become equal where both are cut: the split cannot know.
        "test_prompts_in_train_once_cut": sum(tuple(ids) in seen for ids in tables["test"]["prompt_ids"].to_pylist()),
        "vocabulary": len(material.tokenizer),
    }
    for name, table in tables.items():
        if len(table):
            for column in ("prompt", "response"):
                mean = pc.mean(pc.list_value_length(table[f"{column}_ids"])).as_py()
                summary[f"{name}_{column}_tokens"] = round(mean, 1)
    return summary
