"""The alarm for likelihood displacement: the truth becomes less likely while the loss looks fine.

A contrastive loss asks only that the gold lead its negatives, and it can lead while all of them sink.
"""

from collections.abc import Sequence
from itertools import pairwise

WINDOW = 10  # steps that are averaged
FALLS = 4  # windows that must each be lower than the one before
NATS = 1.0  # that the gold must have lost in all


def displacement(gold_drift: Sequence[float]) -> str | None:
    """What to tell the user, or None. gold_drift: the gold's mean policy minus reference log-prob, step by step, nats."""
    if len(gold_drift) < WINDOW * (FALLS + 1):
        return None
    recent = gold_drift[-WINDOW * (FALLS + 1) :]
    means = [sum(recent[i : i + WINDOW]) / WINDOW for i in range(0, len(recent), WINDOW)]
    falling = all(later < earlier for earlier, later in pairwise(means))
    if not falling or means[-1] > -NATS:
        return None
    return (
        f"the gold's log-prob keeps falling: it is {-means[-1]:.1f} nats below the reference's (likelihood displacement). "
        "Try a higher objective.beta, a lower training.learning_rate, objective.mle_weight 1, or objective.gold_floor_weight 1"
    )
