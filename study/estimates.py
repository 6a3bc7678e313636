"""Estimates over seeds: means with Student's intervals, and one-sided tests against a margin. The seed is the unit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from scipy.stats import t as student

Direction = Literal["less", "greater"]


@dataclass(frozen=True)
class Mean:
    """A mean over n seeds with its interval. low and high: None with fewer than two seeds."""

    value: float
    low: float | None
    high: float | None
    deviation: float  # standard deviation over seeds, n - 1 in the denominator; 0 for one seed
    n: int

    @property
    def t(self) -> float | None:
        """Student's t of the mean against zero; None with fewer than two seeds or without any spread."""
        return self.value / (self.deviation / math.sqrt(self.n)) if self.n > 1 and self.deviation else None


def mean_over_seeds(values: Sequence[float], confidence: float = 0.95) -> Mean:
    """Return the mean of one value per seed, with Student's interval. Raises ValueError without a value."""
    if not values:
        raise ValueError("no values: a mean needs at least one seed")
    value, n = fmean(values), len(values)
    if n == 1:
        return Mean(value, None, None, 0.0, 1)
    deviation = stdev(values)
    margin = float(student.ppf(0.5 + confidence / 2, n - 1)) * deviation / math.sqrt(n)
    return Mean(value, value - margin, value + margin, deviation, n)


def one_sided_p(values: Sequence[float], direction: Direction, margin: float = 0.0) -> float:
    """p-value of Student's test of "the mean is not `direction` than `margin`", one value per seed.

    Small: the mean is less (greater) than the margin. Without any spread it is 0, 1, or 1/2 at the margin. Raises ValueError
    for fewer than two seeds.
    """
    if len(values) < 2:
        raise ValueError(f"{len(values)} seeds: a test needs at least two")
    estimate = mean_over_seeds(values)
    distance = estimate.value - margin if direction == "greater" else margin - estimate.value
    if estimate.deviation == 0:
        return 0.5 if distance == 0 else float(distance < 0)
    return float(student.sf(distance / (estimate.deviation / math.sqrt(estimate.n)), estimate.n - 1))
