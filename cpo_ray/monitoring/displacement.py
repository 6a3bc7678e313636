"""Detect likelihood displacement: the gold becomes less likely although the loss falls.

A contrastive loss only compares the gold with its negatives, so all of their log-probs can fall together.
"""

from collections.abc import Sequence
from itertools import pairwise

WINDOW = 10  # steps to average over
FALLS = 4  # consecutive windows that must each be lower than the previous one
NATS = 1.0  # minimum loss of the gold's log-prob against the reference


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
