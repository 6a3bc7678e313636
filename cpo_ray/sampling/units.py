"""A unit is what streams between the actors: consecutive rows that exchange their responses as batch negatives.

A unit is one row of the Ray Dataset, so its rows stay together however Ray Data splits blocks. Its negatives, and the batches
in which it is scored, therefore depend on the training split alone.
"""

import time
from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypedDict

import pyarrow as pa

from cpo_ray.config import SamplingConfig
from cpo_ray.records import ANSWER, CANDIDATE_KINDS, NEGATIVE_KINDS, SCORED_GROUP_SCHEMA, Group, Tokens
from cpo_ray.sampling.negatives.batch import distinct
from cpo_ray.sampling.negatives.context import NegativeContext
from cpo_ray.sampling.negatives.registry import Draw, Limits, draw_kind

if TYPE_CHECKING:
    from ray.data import Dataset

UNHELPFUL = "unhelpful"  # the kind, and the column of the selected rows with these negatives, which are made first
UNHELPFUL_REDRAWS = "unhelpful_redraws"  # the column with the number of answers thrown away
ORDER = (CANDIDATE_KINDS[0], ANSWER, *NEGATIVE_KINDS)  # of the kinds in a group
ANSWERS = ("answer_ids", "answer_rank", "answer_score")  # columns of the selected rows with the answers of the data
COLUMNS = ["id", "prompt", "prompt_ids", "response", "response_ids"]


class KindWork(TypedDict):
    """The work for the candidates of one kind, including draws thrown away."""

    kind: str
    redraws: int  # draws thrown away
    tokens: int  # drawn
    seconds: float  # of one actor


class Unit(TypedDict):
    """Groups in progress: candidates are added kind by kind, then sorted, scored and ranked."""

    start: int  # number of the first row; in a stream, the optimizer step
    seed: int  # of the draws: the run's seed; in a stream, the step's own
    policy: str  # folder of the model that negatives are sampled from; "" for the reference
    groups: list[Group]
    work: list[KindWork]


WORK_SCHEMA = pa.struct(
    [("kind", pa.string()), ("redraws", pa.int64()), ("tokens", pa.int64()), ("seconds", pa.float64())]
)
UNIT_SCHEMA = pa.schema(
    [
        ("start", pa.int64()),
        ("seed", pa.int64()),
        ("policy", pa.string()),
        ("groups", pa.list_(pa.struct(list(SCORED_GROUP_SCHEMA)))),
        ("work", pa.list_(WORK_SCHEMA)),
    ]
)


def read_units(table: pa.Table) -> list[Unit]:
    """The units of a batch of the Ray Dataset."""
    return table.to_pylist()


def write_units(units: list[Unit]) -> pa.Table:
    """A batch of the Ray Dataset, UNIT_SCHEMA."""
    return pa.Table.from_pylist(units, schema=UNIT_SCHEMA)


def iterate_units(units: "Dataset") -> Generator[Unit, None, None]:
    """The units of a Ray Dataset, as they are finished. Its actors stop when the generator is closed."""
    for batch in units.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=1):
        yield from read_units(batch)


def windows(rows: int, batch_rows: int) -> Iterator[tuple[int, int, int]]:
    """(first, start, stop) of every unit: its rows start..stop-1 exchange responses with rows first..stop-1.

    A shorter last unit exchanges with the last `batch_rows` rows.
    """
    for start in range(0, rows, batch_rows):
        yield window(rows, start, batch_rows)


def window(rows: int, start: int, batch_rows: int) -> tuple[int, int, int]:
    """(first, start, stop) of the unit that starts at row `start`."""
    return max(0, min(start, rows - batch_rows)), start, min(start + batch_rows, rows)


def draw_unit(
    table: pa.Table,
    start: int,
    config: SamplingConfig,
    seed: int,
    draws: Mapping[str, Draw],
    limits: Limits,
) -> Unit:
    """The unit of rows start, start + 1, ... with the gold and the negatives that need no model here.

    table: all selected rows (EXAMPLE_SCHEMA). draws: from `load_kinds`. Raises DataError for a row that cannot have its
    negatives, ConfigError for a kind that returns an invalid negative.
    """
    first, start, stop = window(len(table), start, config.batch_rows)
    columns = [*COLUMNS, *(name for name in (UNHELPFUL, UNHELPFUL_REDRAWS, *ANSWERS) if name in table.column_names)]
    rows = table.select(columns).slice(first, stop - first).to_pylist()
    responses = distinct(row["response_ids"] for row in rows)
    unit = empty_unit(start, seed)
    for row in rows[start - first :]:
        context = _context(row, responses, limits.eos)
        group = _new_group(context)
        if ANSWERS[0] in row:
            _add_answers(group, row)
        if UNHELPFUL in row:
            add_candidates(group, UNHELPFUL, row[UNHELPFUL])
            tokens = sum(map(len, row[UNHELPFUL]))
            add_work(unit, UNHELPFUL, redraws=row[UNHELPFUL_REDRAWS], tokens=tokens, seconds=0.0)
        _draw(unit, group, context, config, draws, limits)
        unit["groups"].append(group)
    return unit


def empty_unit(start: int, seed: int) -> Unit:
    """A unit without groups."""
    return {"start": start, "seed": seed, "policy": "", "groups": [], "work": []}


def add_candidates(group: Group, kind: str, candidates: list[Tokens]) -> None:
    """Append candidates of one kind."""
    group["candidate_kind"] += [kind] * len(candidates)
    group["candidate_ids"] += candidates


def add_work(unit: Unit, kind: str, *, redraws: int, tokens: int, seconds: float) -> None:
    """Add to the unit's work for one kind."""
    for work in unit["work"]:
        if work["kind"] == kind:
            work["redraws"] += redraws
            work["tokens"] += tokens
            work["seconds"] += seconds
            return
    unit["work"].append({"kind": kind, "redraws": redraws, "tokens": tokens, "seconds": seconds})


def sort_candidates(group: Group) -> None:
    """Sort candidates by kind: the gold, other answers of the data, the shipped kinds, the user's kinds by name.

    Candidates of a kind keep their order.
    """
    order = sorted(range(len(group["candidate_kind"])), key=lambda k: kind_order(group["candidate_kind"][k]))
    group["candidate_kind"] = [group["candidate_kind"][k] for k in order]
    group["candidate_ids"] = [group["candidate_ids"][k] for k in order]


def kind_order(kind: str) -> tuple[int, str]:
    """Sort key of a kind among the candidates of a group."""
    return (ORDER.index(kind) if kind in ORDER else len(ORDER)), kind


def _add_answers(group: Group, row: dict[str, Any]) -> None:
    """Add the other answers that the data ranks. Their ranks and scores stand before those of candidates to come."""
    add_candidates(group, ANSWER, row["answer_ids"])
    group["rank"] = [0, *row["answer_rank"]] if row["answer_rank"] else []
    group["score"] = row["answer_score"]


def _draw(
    unit: Unit,
    group: Group,
    context: NegativeContext,
    config: SamplingConfig,
    draws: Mapping[str, Draw],
    limits: Limits,
) -> None:
    counts, present, seed = config.negatives.by_kind, group["candidate_ids"], unit["seed"]
    for kind, draw in draws.items():
        started = time.perf_counter()
        drawn = draw_kind(kind, draw, counts[kind], context, present, seed, config.redraws, limits)
        add_candidates(group, kind, drawn.negatives)
        tokens = sum(map(len, drawn.negatives)) + drawn.discarded_tokens
        add_work(unit, kind, redraws=drawn.redraws, tokens=tokens, seconds=time.perf_counter() - started)


def _context(row: dict[str, Any], responses: list[Tokens], eos: int) -> NegativeContext:
    gold = row["response_ids"]
    return NegativeContext(
        id=row["id"],
        prompt=row["prompt"],
        response=row["response"],
        prompt_ids=row["prompt_ids"],
        gold=gold,
        eos=eos,
        others=[tokens for tokens in responses if tokens != gold],
    )


def _new_group(context: NegativeContext) -> Group:
    return {
        "id": context.id,
        "prompt": context.prompt,
        "prompt_ids": context.prompt_ids,
        "candidate_kind": ["gold"],
        "candidate_ids": [context.gold],
        "candidate_text": [],
        "similarity": [],
        "rank": [],
        "ref_logps": [],
        "ref_spread": None,
        "score": None,
    }
