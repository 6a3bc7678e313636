"""What streams between the actors: a unit, the consecutive rows that exchange their responses as batch negatives.

A unit is one row of the Ray Dataset. Whatever Ray does with blocks, a unit's rows stay together: its negatives, and the
batches in which its scores are computed, depend on the training split alone.
"""

import time
from collections.abc import Iterator, Mapping
from typing import Any, TypedDict

import pyarrow as pa

from cpo_ray.config import RunConfig
from cpo_ray.records import CANDIDATE_KINDS, GROUP_SCHEMA, Group
from cpo_ray.sampling.negatives.batch import distinct
from cpo_ray.sampling.negatives.context import Source, Tokens
from cpo_ray.sampling.negatives.registry import Draw, Limits, draw_kind

UNHELPFUL = "unhelpful"  # the kind, and a column of the selected rows: those negatives, made before the others
UNHELPFUL_REDRAWS = "unhelpful_redraws"  # a column: answers thrown away
COLUMNS = ["id", "prompt", "prompt_ids", "response", "response_ids"]


class Work(TypedDict):
    """What it took to make the candidates of one kind, thrown-away draws included."""

    kind: str
    redraws: int  # draws thrown away
    tokens: int  # drawn
    seconds: float  # of one actor


class Unit(TypedDict):
    """Groups in the making: candidates are added by kind, then put in order, scored and ranked."""

    start: int  # number of the first row; of a stream's unit, its optimizer step
    seed: int  # of its draws: the run's, or a stream's own for this step
    policy: str  # folder of the model that negatives are sampled from; "" for the reference
    groups: list[Group]
    work: list[Work]


WORK_SCHEMA = pa.struct(
    [("kind", pa.string()), ("redraws", pa.int64()), ("tokens", pa.int64()), ("seconds", pa.float64())]
)
UNIT_SCHEMA = pa.schema(
    [
        ("start", pa.int64()),
        ("seed", pa.int64()),
        ("policy", pa.string()),
        ("groups", pa.list_(pa.struct(list(GROUP_SCHEMA)))),
        ("work", pa.list_(WORK_SCHEMA)),
    ]
)


def read_units(table: pa.Table) -> list[Unit]:
    """A batch of the Ray Dataset as units."""
    return table.to_pylist()


def write_units(units: list[Unit]) -> pa.Table:
    """The reverse."""
    return pa.Table.from_pylist(units, schema=UNIT_SCHEMA)


def windows(rows: int, batch_rows: int) -> Iterator[tuple[int, int, int]]:
    """(first, start, stop) of every unit: its rows start..stop-1 exchange responses with rows first..stop-1.

    A last, shorter unit exchanges with the last `batch_rows` rows.
    """
    for start in range(0, rows, batch_rows):
        yield window(rows, start, batch_rows)


def window(rows: int, start: int, batch_rows: int) -> tuple[int, int, int]:
    """The one of the unit that begins at `start`."""
    return max(0, min(start, rows - batch_rows)), start, min(start + batch_rows, rows)


def draw_unit(
    table: pa.Table, start: int, prompt_tokens: int, config: RunConfig, draws: Mapping[str, Draw], limits: Limits
) -> Unit:
    """Begin the unit of rows start, start + 1, ...: the gold, and the negatives that need no model here.

    table: all selected rows (EXAMPLE_SCHEMA). draws: as `load_kinds` gives them. Raises DataError where a row cannot have
    its negatives, ConfigError for a kind that gives what is no negative.
    """
    first, start, stop = window(len(table), start, config.sampling.batch_rows)
    there = [*COLUMNS, *(name for name in (UNHELPFUL, UNHELPFUL_REDRAWS) if name in table.column_names)]
    rows = table.select(there).slice(first, stop - first).to_pylist()
    pool = distinct(row["response_ids"] for row in rows)
    unit = begin_unit(start, config.seed)
    for row in rows[start - first :]:
        source = _source(row, pool, prompt_tokens)
        group = _begin_group(source)
        if UNHELPFUL in row:
            add(group, UNHELPFUL, row[UNHELPFUL])
            note(unit, UNHELPFUL, redraws=row[UNHELPFUL_REDRAWS], tokens=sum(map(len, row[UNHELPFUL])), seconds=0.0)
        _draw(unit, group, source, config, draws, limits)
        unit["groups"].append(group)
    return unit


def begin_unit(start: int, seed: int) -> Unit:
    """A unit without groups."""
    return {"start": start, "seed": seed, "policy": "", "groups": [], "work": []}


def add(group: Group, kind: str, candidates: list[Tokens]) -> None:
    """Append candidates of one kind."""
    group["candidate_kind"] += [kind] * len(candidates)
    group["candidate_ids"] += candidates


def note(unit: Unit, kind: str, *, redraws: int, tokens: int, seconds: float) -> None:
    """Add to the work that a kind took."""
    for work in unit["work"]:
        if work["kind"] == kind:
            work["redraws"] += redraws
            work["tokens"] += tokens
            work["seconds"] += seconds
            return
    unit["work"].append({"kind": kind, "redraws": redraws, "tokens": tokens, "seconds": seconds})


def put_in_order(group: Group) -> None:
    """Sort candidates by kind: the gold, the shipped kinds, the user's by name; draws in their order."""
    order = sorted(range(len(group["candidate_kind"])), key=lambda k: kind_order(group["candidate_kind"][k]))
    group["candidate_kind"] = [group["candidate_kind"][k] for k in order]
    group["candidate_ids"] = [group["candidate_ids"][k] for k in order]


def kind_order(kind: str) -> tuple[int, str]:
    """Where a kind stands among the candidates of a group."""
    return (CANDIDATE_KINDS.index(kind) if kind in CANDIDATE_KINDS else len(CANDIDATE_KINDS)), kind


def _draw(
    unit: Unit, group: Group, source: Source, config: RunConfig, draws: Mapping[str, Draw], limits: Limits
) -> None:
    counts, redraws = config.sampling.negatives.by_kind, config.sampling.redraws
    for kind, draw in draws.items():
        began = time.perf_counter()
        drawn = draw_kind(kind, draw, counts[kind], source, group["candidate_ids"], config.seed, redraws, limits)
        add(group, kind, drawn.negatives)
        tokens = sum(map(len, drawn.negatives)) + drawn.thrown_tokens
        note(unit, kind, redraws=drawn.redraws, tokens=tokens, seconds=time.perf_counter() - began)


def _source(row: dict[str, Any], pool: list[Tokens], prompt_tokens: int) -> Source:
    gold = row["response_ids"]
    return Source(
        id=row["id"],
        prompt=row["prompt"],
        response=row["response"],
        prompt_ids=row["prompt_ids"][-prompt_tokens:],
        gold=gold,
        others=[tokens for tokens in pool if tokens != gold],
    )


def _begin_group(source: Source) -> Group:
    return {
        "id": source.id,
        "prompt": source.prompt,
        "prompt_ids": source.prompt_ids,
        "candidate_kind": ["gold"],
        "candidate_ids": [source.gold],
        "candidate_text": [],
        "similarity": [],
        "rank": [],
        "ref_logps": [],
    }
