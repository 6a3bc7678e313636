"""Detect likelihood displacement: the gold becomes less likely although the loss falls.

A contrastive loss only compares the gold with its negatives, so all of their log-probs can fall together.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise

WINDOW = 10  # steps to average over
FALLS = 4  # consecutive windows that must each be lower than the previous one
NATS = 1.0  # minimum loss of the gold's log-prob against the reference
LAST = 5  # steps before the reference moves, whose mean drift is that of the new reference


def displacement(gold_drift: Sequence[float], reference: str = "reference") -> str | None:
    """A warning, or None. gold_drift: the gold's mean policy minus reference log-prob, step by step, nats.

    reference: the model that it is measured against, for the warning.
    """
    if len(gold_drift) < WINDOW * (FALLS + 1):
        return None
    recent = gold_drift[-WINDOW * (FALLS + 1) :]
    means = [sum(recent[i : i + WINDOW]) / WINDOW for i in range(0, len(recent), WINDOW)]
    falling = all(later < earlier for earlier, later in pairwise(means))
    if not falling or means[-1] > -NATS:
        return None
    return (
        f"the gold's log-prob keeps falling: it is {-means[-1]:.1f} nats below the {reference}'s (likelihood displacement). "
        "Try a higher objective.beta, a lower training.learning_rate, objective.mle_weight 1, or objective.gold_floor_weight 1"
    )


def first_drift(gold_drift: Mapping[int, float], reference_step: Mapping[int, int], shift: float = 0.0) -> list[float]:
    """The gold's drift against the first reference, step by step, where the reference moves during training.

    gold_drift: step -> drift against the step's reference, nats. reference_step: step -> which reference that is. shift: the
    gold's mean log-prob under the first of these references minus that under the very first. An estimate: a reference's own
    drift is the mean of the LAST steps before it.
    """
    drifts: list[float] = []
    for _, steps in groupby(sorted(gold_drift), key=lambda step: reference_step.get(step, 0)):
        own = [gold_drift[step] for step in steps]
        drifts += [shift + drift for drift in own]
        shift += sum(own[-LAST:]) / len(own[-LAST:])
    return drifts
