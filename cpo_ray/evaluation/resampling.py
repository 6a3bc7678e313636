"""Intervals over prompts for measurements of texts: the bootstrap for means over answers, the jackknife for whole sets.

Both resample prompts alone. They say how far a value would move with other prompts, and nothing about other training seeds.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

from cpo_ray.evaluation.statistics import CONFIDENCE, RESAMPLES, win_rate_interval

GROUPS = 20  # of the delete-a-group jackknife
CHUNK_DRAWS = 2**24  # bootstrap weights in memory: 128 MiB


class Estimate(TypedDict):
    """A value with its 95% interval over prompts. None: not defined, for `low` and `high` also with fewer than two prompts."""

    value: float | None
    low: float | None
    high: float | None
    n: int  # prompts that the value is made of


class Measured(NamedTuple):
    """A statistic of a set of answers, and how many of them it is made of."""

    value: float
    n: int


def bootstrap_means(values_NM: npt.NDArray[np.float64], seed: int) -> list[Estimate]:
    """The mean of each column over its defined rows (not NaN), with the percentile bootstrap over the rows.

    A row is a prompt. A column of paired differences is compared prompt by prompt. All columns share the resamples, so up to
    rounding a column gets the same interval in every call with as many rows and this seed.
    """
    rows = len(values_NM)
    defined_NM = ~np.isnan(values_NM)
    filled_NM, weights_NM = np.where(defined_NM, values_NM, 0.0), defined_NM.astype(np.float64)
    rng, means = np.random.default_rng(seed), []
    chunk = max(1, min(RESAMPLES, CHUNK_DRAWS // max(1, rows)))
    for start in range(0, RESAMPLES if rows else 0, chunk):
        size = min(chunk, RESAMPLES - start)
        drawn = rng.integers(rows, size=(size, rows)) + rows * np.arange(size)[:, None]
        times_RN = np.bincount(drawn.ravel(), minlength=size * rows).reshape(size, rows).astype(np.float64)
        counts = times_RN @ weights_NM
        means.append(np.divide(times_RN @ filled_NM, counts, out=np.full(counts.shape, np.nan), where=counts > 0))
    tail = (1 - CONFIDENCE) / 2
    estimates = []
    for column, count in enumerate(defined_NM.sum(axis=0).tolist()):
        value = float(filled_NM[:, column].sum() / count) if count else None
        low, high = None, None
        if count > 1:
            resampled = np.concatenate([part[:, column] for part in means])
            low, high = (float(end) for end in np.nanquantile(resampled, [tail, 1 - tail]))
        estimates.append(Estimate(value=value, low=low, high=high, n=count))
    return estimates


def share(values_N: npt.NDArray[np.float64]) -> Estimate:
    """The share of rows that are 1 and not 0, with Wilson's interval: a bootstrap of equal values is a point."""
    if not len(values_N):
        return Estimate(value=None, low=None, high=None, n=0)
    value, low, high = win_rate_interval(["win" if value else "loss" for value in values_N])
    return Estimate(value=value, low=low, high=high, n=len(values_N))


def assign_groups(rows: int, seed: int) -> npt.NDArray[np.int64]:
    """Each prompt's group for the jackknife, (N,): at random, GROUPS of about equal size, or one each for fewer prompts."""
    return np.random.default_rng(seed).permutation(rows) % max(1, min(GROUPS, rows))


def jackknife(
    statistics: Callable[[npt.NDArray[np.bool_]], list[Measured]], group_N: npt.NDArray[np.int64]
) -> list[Estimate]:
    """Each statistic of a set, with an interval from the set without one group of prompts after another.

    statistics: maps the kept rows, (N,), to values; NaN is "not defined". group_N: from `assign_groups`. Why not a bootstrap:
    it draws prompts repeatedly, and a text that occurs twice makes every set less diverse than it is. The
    jackknife's variance is on average not too small (Efron and Stein 1981); the interval is Student's, with groups - 1
    degrees of freedom.
    """
    whole = statistics(np.ones(len(group_N), dtype=bool))
    groups = int(group_N.max(initial=-1)) + 1
    without_GM = np.array([[each.value for each in statistics(group_N != group)] for group in range(groups)])
    estimates = []
    for column, (value, count) in enumerate(whole):
        margin = math.nan
        if groups > 1:
            spread = without_GM[:, column].var() * (groups - 1)
            margin = float(student.ppf(0.5 + CONFIDENCE / 2, groups - 1)) * math.sqrt(spread)
        ends = (value - margin, value + margin) if math.isfinite(margin) else (None, None)
        defined = math.isfinite(value)
        estimates.append(Estimate(value=value if defined else None, low=ends[0], high=ends[1], n=count))
    return estimates
