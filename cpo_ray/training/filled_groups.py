"""Groups of different K, as answers that the data ranks make them, filled up to one K for all."""

from typing import Any

from cpo_ray.objective.packing import fill_up
from cpo_ray.records import SCORE
from cpo_ray.training.task import Refusal

COPIED = ("ref_logps", "similarity", SCORE.name)  # columns in which a copy of the gold has what the gold has
NAMES = {"rank": "ranks", "ref_logps": "reference log-probs", "candidate_kind": "kinds"}
GOLD = "gold"


def fill_groups(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Groups, column by column, all with the K of the longest: the shorter ones get copies of their gold, ranked last.

    Such a copy is masked like any candidate that equals the gold, and costs nothing in a token tree. Raises Refusal for a
    group whose columns have different lengths.
    """
    counts = list(map(len, columns["candidate_ids"]))
    _check_lengths(columns, counts)
    k = max(counts, default=0)
    if all(count == k for count in counts):
        return columns
    copied = (name for name in COPIED if name in columns)
    filled: dict[str, list[Any]] = {name: [_fill(values, k) for values in columns[name]] for name in copied}
    filled["candidate_ids"] = fill_up(columns["candidate_ids"])
    filled["candidate_kind"] = [[*kinds, *[GOLD] * (k - len(kinds))] for kinds in columns["candidate_kind"]]
    filled["rank"] = [[*ranks, *range(len(ranks), k)] for ranks in columns["rank"]]
    return columns | filled


def _fill(values: list[Any] | None, k: int) -> list[Any] | None:
    return None if values is None else [*values, *values[:1] * (k - len(values))]


def _check_lengths(columns: dict[str, list[Any]], counts: list[int]) -> None:
    for name, what in NAMES.items():
        for row, (values, count) in enumerate(zip(columns[name], counts, strict=True)):
            if len(values) != count:
                raise Refusal(
                    f"row {columns['id'][row]} has {len(values)} {what}, but {count} candidates: make the groups again"
                )
