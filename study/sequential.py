"""Group-sequential tests with O'Brien-Fleming bounds, and Holm's procedure over hypotheses with them.

O'Brien and Fleming, Biometrics 35 (1979); Holm, Scand. J. Statist. 6 (1979); together: Maurer and Bretz, Statistics in
Biopharmaceutical Research 5 (2013).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import sqrt

from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import norm

LARGEST_BOUND = 40.0


@cache
def bounds(alpha: float, information: tuple[float, ...]) -> tuple[float, ...]:
    """Bounds c_k of |Z_k|, two-sided, with P(|Z_k| > c_k at some look) = alpha without an effect.

    O'Brien-Fleming: c_k = C / sqrt(t_k), where t_k is the share of the seeds that look k has. information: one share, 1, or
    two, the second 1; cov(Z_1, Z_2) = sqrt(t_1 / t_2). C solves

        integral over |z| <= c_1 of phi(z) P(|Z_2| <= c_2 | Z_1 = z) dz = 1 - alpha.

    At alpha .05 and looks at 1/2 and 1: 2.797 and 1.977. Raises ValueError for other looks.
    """
    if not 0 < alpha < 1 or information[-1:] != (1.0,) or len(information) not in (1, 2) or information[0] <= 0:
        raise ValueError(
            f"alpha {alpha} and looks {information}: expected 0 < alpha < 1 and one or two looks, the last at 1"
        )
    if len(information) == 1:
        return (float(norm.ppf(1 - alpha / 2)),)
    first = information[0]
    correlation, spread = sqrt(first), sqrt(1 - first)

    def excess(constant: float) -> float:
        def inside(z: float) -> float:
            low, high = ((sign * constant - correlation * z) / spread for sign in (-1, 1))
            return float(norm.pdf(z) * (norm.cdf(high) - norm.cdf(low)))

        limit = constant / sqrt(first)
        return quad(inside, -limit, limit, epsabs=1e-10)[0] - (1 - alpha)

    constant = brentq(excess, 1e-6, LARGEST_BOUND, xtol=1e-10)
    return (constant / sqrt(first), constant)


def nominal_levels(alpha: float, information: Sequence[float]) -> tuple[float, ...]:
    """The two-sided p-value to reach at each look: .0052 and .0480 for .05 at looks of equal size.

    With few seeds a t statistic is compared by its p-value, from Student's distribution, with these levels of the normal one.
    """
    return tuple(2 * float(norm.sf(bound)) for bound in bounds(alpha, tuple(information)))


@dataclass(frozen=True)
class Rejection:
    """When a hypothesis was rejected: at which look (from 1), at which p-value, against which level."""

    look: int
    p_value: float
    level: float


@dataclass(frozen=True)
class Standing:
    """A hypothesis after the looks so far: its p-value at the last one and the level that it would have had to reach."""

    look: int
    p_value: float
    level: float
    rejection: Rejection | None


def holm_over_looks(
    names: Iterable[str], p_values: Sequence[Mapping[str, float]], alpha: float, information: Sequence[float]
) -> dict[str, Standing]:
    """Holm's procedure at every look, with the bounds of a group-sequential test at the level that Holm allows.

    names: of all hypotheses. p_values: for each look so far, hypothesis -> p-value; one without a p-value is not tested at that
    look, but counts among those left. With m hypotheses left, the smallest p-value is compared with the look's nominal level at
    alpha / m; if it is reached, the hypothesis is rejected, and m falls by one, for later looks too. So the probability of any
    false rejection at any look is at most alpha.
    """
    left, standings = set(names), dict[str, Standing]()
    for number, look in enumerate(p_values, 1):
        for name in sorted(left & look.keys(), key=look.__getitem__):
            level = nominal_levels(alpha / len(left), information)[number - 1]
            if look[name] <= level:
                rejection = Rejection(number, look[name], level)
                standings[name] = Standing(number, look[name], level, rejection)
                left.discard(name)
            else:
                break
        for name in left & look.keys():
            level = nominal_levels(alpha / len(left), information)[number - 1]
            standings[name] = Standing(number, look[name], level, None)
    return standings
