"""Groups in the layouts of other trainers: preference pairs (TRL), and rows of rated completions (UltraFeedback)."""

from collections.abc import Iterator
from typing import Any, Literal

from cpo_ray.records import Group

Pairs = Literal["best", "best-worst", "all"]


def preference_pairs(group: Group, which: Pairs) -> Iterator[dict[str, Any]]:
    """The pairs of a group as rows with `prompt`, `chosen` and `rejected`, for TRL's DPOTrainer.

    which: `best`: the gold over each worse candidate; `best-worst`: over the worst alone; `all`: every candidate over every
    worse one. Candidates that tie, and that equal an earlier one, make no pair. Also `id`, the kinds of both, and their
    scores if the data gives them.
    """
    order = _distinct(group)
    better = order if which == "all" else order[:1]
    for one in better:
        worse = [other for other in order if group["rank"][other] > group["rank"][one]]
        for other in worse[-1:] if which == "best-worst" else worse:
            yield _pair(group, one, other)


def rated_completions(group: Group) -> dict[str, Any]:
    """A group as one row with `instruction` and `completions`, in the layout of UltraFeedback.

    A completion has `response`, `overall_score`, `kind` and `rank`. The score is that of the data, if all candidates have one;
    otherwise it counts the candidates that are worse, so that a higher one is better in either case.
    """
    order, scores = _distinct(group), group.get("score")
    if scores is None or any(scores[k] is None for k in order):
        scores = [float(sum(group["rank"][other] > rank for other in order)) for rank in group["rank"]]
    completions = [
        {
            "response": group["candidate_text"][k],
            "overall_score": scores[k],
            "kind": group["candidate_kind"][k],
            "rank": group["rank"][k],
        }
        for k in order
    ]
    return {"id": group["id"], "instruction": group["prompt"], "completions": completions}


def _distinct(group: Group) -> list[int]:
    """The candidates from the best to the worst, without those whose text is that of a better one."""
    first: dict[str, int] = {}
    for k in sorted(range(len(group["rank"])), key=lambda k: (group["rank"][k], k)):
        first.setdefault(group["candidate_text"][k], k)
    return list(first.values())


def _pair(group: Group, one: int, other: int) -> dict[str, Any]:
    texts, kinds, scores = group["candidate_text"], group["candidate_kind"], group.get("score")
    row: dict[str, Any] = {"id": group["id"], "prompt": group["prompt"], "chosen": texts[one], "rejected": texts[other]}
    row |= {"chosen_kind": kinds[one], "rejected_kind": kinds[other]}
    if scores and scores[one] is not None and scores[other] is not None:
        row |= {"score_chosen": scores[one], "score_rejected": scores[other]}
    return row
