"""What streams between the actors: a unit, the consecutive rows that exchange their responses as batch negatives.

A unit is one row of the Ray Dataset. Whatever Ray does with blocks, a unit's rows stay together: its negatives, and the
batches in which its scores are computed, depend on the training split alone.
"""

from typing import TypedDict

import pyarrow as pa

from cpo_ray.config import RunConfig
from cpo_ray.records import CANDIDATE_KINDS, GROUP_SCHEMA, Group
from cpo_ray.sampling.batch import batch_negatives, distinct
from cpo_ray.sampling.truncation import truncation_negatives

UNIT_SCHEMA = pa.schema([("start", pa.int64()), ("groups", pa.list_(pa.struct(list(GROUP_SCHEMA))))])


class Unit(TypedDict):
    """Groups in the making: candidates are added by kind, then put in order, scored and ranked."""

    start: int  # number of the first row
    groups: list[Group]


def read_units(table: pa.Table) -> list[Unit]:
    """A batch of the Ray Dataset as units."""
    return table.to_pylist()


def write_units(units: list[Unit]) -> pa.Table:
    """The reverse."""
    return pa.Table.from_pylist(units, schema=UNIT_SCHEMA)


def draw_unit(table: pa.Table, start: int, prompt_tokens: int, config: RunConfig) -> Unit:
    """Begin the unit of rows start, start + 1, ...: the gold, and the negatives that need no model.

    table: all selected rows (EXAMPLE_SCHEMA). A last, shorter unit exchanges with the last `batch_rows` rows.
    Raises DataError where a row cannot have its negatives.
    """
    size, counts = config.sampling.batch_rows, config.sampling.negatives
    stop = min(start + size, len(table))
    first = max(0, min(start, len(table) - size))
    window = table.select(["id", "prompt", "prompt_ids", "response_ids"]).slice(first, stop - first).to_pylist()
    pool = distinct(row["response_ids"] for row in window)
    groups = []
    for row in window[start - first :]:
        group = _begin_group(row["id"], row["prompt"], row["prompt_ids"][-prompt_tokens:], row["response_ids"])
        gold, row_id = row["response_ids"], row["id"]
        if counts.batch:
            add(group, "batch", batch_negatives(gold, pool, counts.batch, config.seed, row_id))
        if counts.truncation:
            add(group, "truncation", truncation_negatives(gold, counts.truncation, config.seed, row_id))
        groups.append(group)
    return {"start": start, "groups": groups}


def add(group: Group, kind: str, candidates: list[list[int]]) -> None:
    """Append candidates of one kind."""
    group["candidate_kind"] += [kind] * len(candidates)
    group["candidate_ids"] += candidates


def put_in_order(group: Group) -> None:
    """Sort candidates by kind: the gold, autoregressive, batch, meanfield, truncation; draws in their order."""
    order = sorted(range(len(group["candidate_kind"])), key=lambda k: CANDIDATE_KINDS.index(group["candidate_kind"][k]))
    group["candidate_kind"] = [group["candidate_kind"][k] for k in order]
    group["candidate_ids"] = [group["candidate_ids"][k] for k in order]


def _begin_group(row_id: str, prompt: str, prompt_ids: list[int], gold: list[int]) -> Group:
    return {
        "id": row_id,
        "prompt": prompt,
        "prompt_ids": prompt_ids,
        "candidate_kind": ["gold"],
        "candidate_ids": [gold],
        "candidate_text": [],
        "similarity": [],
        "rank": [],
        "ref_logps": [],
    }
