"""Rounding noise in log-probs: how large it is, and what it does to the CPO loss.

bf16 rounds hidden states to a relative 2^-8, and a kernel sums in another order if its input has another shape. So the same
model gives a continuation of T tokens log-probs that differ between two packings by about `noise * sqrt(T)` nats: the errors
of its tokens add up like independent ones.
"""

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from cpo_ray.records import Tokens


def scoring_noise(spreads: Sequence[Sequence[float] | None], candidates: Sequence[Sequence[Tokens]]) -> float | None:
    """The measured noise: root mean square of spread / sqrt(tokens), nat per sqrt(token). None if no group was measured.

    spreads: for each group, how far two packings' log-probs of its candidates differ (K,), nats; None if not measured.
    candidates: of each group.
    """
    relative = [
        spread / math.sqrt(len(candidate))
        for group_spreads, group in zip(spreads, candidates, strict=True)
        if group_spreads is not None
        for spread, candidate in zip(group_spreads, group, strict=True)
    ]
    return float(np.sqrt(np.mean(np.square(relative)))) if relative else None


def score_variance(scores_BK: Tensor, valid_BK: Tensor) -> Tensor:
    """The variance of the scores within each group (unbiased), over its valid candidates: (B,). 0 for a single candidate.

    What the candidates of a group have in common cancels in every softmax of the loss, so it does not count.
    """
    counts_B = valid_BK.sum(dim=1)
    kept_BK = scores_BK.masked_fill(~valid_BK, 0.0)
    mean_B1 = kept_BK.sum(dim=1, keepdim=True) / counts_B[:, None]
    squares_B = (kept_BK - mean_B1).masked_fill(~valid_BK, 0.0).square().sum(dim=1)
    return squares_B / (counts_B - 1).clamp(min=1)


def beta_share(variance: float) -> float:
    """Which share of beta is left under noise of this variance in the scores `beta * (policy - reference)`, in (0, 1].

    Noise flattens the mean gradient: the preference between two candidates with true score gap x is sigmoid(x) without it,
    and with it E[sigmoid(x + n)] = sigmoid(x / sqrt(1 + pi / 8 * var n)), nearly (MacKay 1992, equation 10). That is the
    gradient of a smaller beta. The gap has the noise of two candidates: var n = 2 * variance.
    """
    return 1 / math.sqrt(1 + math.pi / 8 * 2 * variance)


def loss_rise(variance: float, candidates: int, *, ranked: bool) -> float:
    """By how much noise of this variance in the scores raises the mean loss above log K (or log K!), to second order.

    A softmax over n candidates adds half of the scores' mean square deviation from their mean: (1 - 1/n) * variance / 2.
    """
    sizes = range(2, candidates + 1) if ranked else [candidates]
    return variance / 2 * sum(1 - 1 / n for n in sizes)
