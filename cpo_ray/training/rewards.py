"""The rewards of a group's candidates, for losses that read one: by rank, by similarity, or as the data gives them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cpo_ray.config import ObjectiveConfig
from cpo_ray.records import CANDIDATE_KINDS, SCORE
from cpo_ray.training.task import Refusal

GOLD = CANDIDATE_KINDS[0]


def read_rewards(columns: dict[str, list[Any]], objective: ObjectiveConfig) -> np.ndarray | None:
    """(rows, K) float32, higher is better; None if the loss reads none. Raises Refusal for scores that cannot be trained on.

    columns: of groups, `id`, `candidate_kind` and what `objective.scores` names. By rank: 1 for rank 0 to 0 for rank K - 1, in
    equal steps. K is the group's own, without the copies of the gold that fill it up.
    """
    if not objective.rewarded:
        return None
    ids = columns["id"]
    if objective.scores == "rank":
        worst = np.array([[max(1, sum(kind != GOLD for kind in kinds))] for kinds in columns["candidate_kind"]])
        return (1 - group_matrix(columns["rank"], ids, "ranks") / worst).clip(min=0).astype(np.float32)
    name = SCORE.name if objective.scores == "given" else "similarity"
    values = columns.get(name) or [None] * len(ids)
    missing: np.ndarray = np.array([row is None or None in row for row in values])
    if missing.any():
        raise Refusal(
            f"objective.scores: {objective.scores} needs a {name} of every candidate; there is none in rows "
            f"{name_rows(ids, missing)}. Use groups with scores, or objective.scores: rank"
        )
    rewards = group_matrix(values, ids, "scores").astype(np.float32)
    _refuse(~np.isfinite(rewards), ids, "scores are not finite")
    if objective.loss == "listwise":
        _refuse(rewards < 0, ids, "scores are negative, and loss: listwise needs shares (loss: infonca takes any)")
    return rewards


def group_matrix(column: list[list[float]], ids: Sequence[str], what: str) -> np.ndarray:
    """(rows, K). Raises Refusal if K differs between rows."""
    k = len(column[0]) if column else 0
    for row, values in enumerate(column):
        if len(values) != k:
            raise Refusal(
                f"row {ids[row]} has {len(values)} {what}, row {ids[0]} has {k}: all groups must have the same K"
            )
    return np.array(column).reshape(len(column), k)


def name_rows(ids: Sequence[str], selected: np.ndarray) -> str:
    """The ids of the selected rows, at most ten of them. selected: (rows,) bool."""
    names = [ids[row] for row in np.flatnonzero(selected)]
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _refuse(invalid: np.ndarray, ids: Sequence[str], what: str) -> None:
    """Raise Refusal if any of (rows, K) is invalid."""
    rows: np.ndarray = np.asarray(invalid.any(axis=1))
    if rows.any():
        raise Refusal(f"{what} in rows {name_rows(ids, rows)}")
