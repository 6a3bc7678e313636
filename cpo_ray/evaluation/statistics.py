"""Statistics of verdicts: intervals of win rates, paired differences on the same prompts, Holm's correction, win rates
controlled for length, and the judge's position bias.

A verdict is `win`, `tie`, `loss` or `invalid` (of the candidate against the ground truth). A tie counts as half; invalid
verdicts are left out.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq, minimize
from scipy.special import expit, logit
from scipy.stats import binom, binomtest, norm

SCORES = {"win": 1.0, "tie": 0.5, "loss": 0.0}
INVALID = "invalid"
CONFIDENCE = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True)
class Difference:
    """Win rate of A minus win rate of B over the prompts on which both have a valid verdict."""

    value: float
    low: float
    high: float
    p_value: float  # two-sided; null hypothesis: no difference
    n: int  # prompts compared
    excluded: int  # prompts left out: invalid or missing on either side


@dataclass(frozen=True)
class LengthControlled:
    """The win rate that the candidate would have if both responses were equally long."""

    rate: float
    low: float
    high: float
    effect: float  # log-odds of winning that a much longer response gains; 0: length has no effect


@dataclass(frozen=True)
class PositionBias:
    """How often the judge prefers the response in the first position. 1/2: no preference."""

    rate: float
    low: float
    high: float
    p_value: float  # two-sided; null hypothesis: no preference
    n: int


def win_rate_interval(outcomes: Sequence[str], confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """Return the win rate, with ties as half, and its score interval: (rate, low, high), each in [0, 1].

    With b wins, c losses and n valid verdicts, the rate is (1 + d) / 2, and d = (b - c) / n estimates
    P(win) - P(loss). So an interval for d gives one for the rate. We use Tango's score interval for d (Statistics in
    Medicine 17, 1998), which inverts the score test with the probability of a tie as nuisance parameter. The reasons:

    - Without ties it equals Wilson's interval. Wilson's formula with half-counted ties would assume the variance
      p(1 - p); the variance is p(1 - p) - P(tie)/4, so that interval is too wide, much too wide with many ties.
    - A bootstrap over rows handles ties but collapses to a point when all verdicts agree, although a few equal verdicts
      prove little. The score interval does not collapse, and needs neither seed nor resampling.

    Invalid verdicts are left out. Raises ValueError if no valid verdict is left or an outcome is unknown.
    """
    counts = _count(outcomes)
    wins, losses, n = counts["win"], counts["loss"], counts["win"] + counts["loss"] + counts["tie"]
    if n == 0:
        raise ValueError("no valid verdicts: a win rate needs at least one win, tie or loss")
    z = float(norm.ppf(0.5 + confidence / 2))
    estimate = (wins - losses) / n
    nudge = 1e-9  # if all verdicts are ties, the score is 0 / 0 exactly at the estimate

    def excess(d: float, sign: float) -> float:
        return sign * (wins - losses - n * d) - z * math.sqrt(_score_variance(d, wins, losses, n))

    low = -1.0 if losses == n else brentq(excess, -1.0, estimate - nudge, args=(1.0,))
    high = 1.0 if wins == n else brentq(excess, estimate + nudge, 1.0, args=(-1.0,))
    return (1 + estimate) / 2, (1 + low) / 2, (1 + high) / 2


def paired_difference(
    outcomes_a: Mapping[str, str],
    outcomes_b: Mapping[str, str],
    seed: int,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> Difference:
    """Compare A and B prompt by prompt: win rate of A minus win rate of B. Both arguments map row id -> outcome.

    The interval is the percentile bootstrap over prompts: each resample draws prompts, with both verdicts, with
    replacement. The p-value is that of the exact sign-flip test: if the models were equally good, the difference on each
    prompt would have either sign with equal probability. The test stays exact when the models differ on few prompts; the
    bootstrap interval is then too narrow. So the p-value decides what is called significant.

    A prompt that is invalid or missing on either side is left out and counted. Raises ValueError if none is left.
    """
    unknown = (set(outcomes_a.values()) | set(outcomes_b.values())) - {*SCORES, INVALID}
    if unknown:
        raise ValueError(f"unknown outcomes {sorted(unknown)}; expected {[*SCORES, INVALID]}")
    ids = sorted(outcomes_a.keys() | outcomes_b.keys())
    valid = [key for key in ids if outcomes_a.get(key) in SCORES and outcomes_b.get(key) in SCORES]
    if not valid:
        raise ValueError("no prompt has a valid verdict on both sides")
    # A difference is -1, -1/2, 0, 1/2 or 1. Counting in halves makes resampling a multinomial draw, and the test exact.
    halves = np.array([round(2 * (SCORES[outcomes_a[key]] - SCORES[outcomes_b[key]])) for key in valid])
    n = len(valid)
    values = np.arange(-2, 3)
    counts = np.array([(halves == value).sum() for value in values])
    draws = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples) @ values / (2 * n)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Difference(
        value=float(halves.sum() / (2 * n)),
        low=float(low),
        high=float(high),
        p_value=_sign_flip(int(halves.sum()), ones=int(counts[0] + counts[4]), halves=int(counts[1] + counts[3])),
        n=n,
        excluded=len(ids) - n,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values, in the given order. Rejecting those below a level bounds the family-wise error by it."""
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for position, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - position) * p_values[index]))
        adjusted[index] = running
    return adjusted


def length_controlled_win_rate(
    outcomes: Sequence[str],
    candidate_lengths: Sequence[float],
    reference_lengths: Sequence[float],
    confidence: float = CONFIDENCE,
) -> LengthControlled | None:
    """Estimate the win rate at equal lengths by logistic regression, similar to AlpacaEval 2 (Dubois et al. 2024).

    With y the score of a pair (win 1, tie 1/2, loss 0) and l the length of the candidate minus the reference's, we fit
    logit E[y] = a + b * tanh(l / std(l)) and return sigmoid(a). The tanh bounds the effect of a single very long answer.
    Their model also has a term for the difficulty of each instruction, which needs many judged models to estimate; ours
    does not. Like theirs, b is shrunk a little, by a standard normal prior, so that it is finite even if lengths separate
    winners from losers exactly. The interval is the delta method's on a, from the sandwich estimate of its variance, which
    is also correct for ties. If all verdicts agree, there is nothing to fit: rate and interval are those of the win rate.

    Lengths are in any unit, the same on both sides, one per outcome; invalid verdicts are left out. If one side is always
    longer, the value at equal lengths is an extrapolation. Returns None if all length differences are equal but not 0,
    because length and quality cannot be separated then. Raises ValueError if no valid verdict is left or an outcome is
    unknown.
    """
    rate, low, high = win_rate_interval(outcomes, confidence)
    valid = [index for index, outcome in enumerate(outcomes) if outcome in SCORES]
    y = np.array([SCORES[outcomes[index]] for index in valid])
    longer = np.array([candidate_lengths[index] - reference_lengths[index] for index in valid], dtype=np.float64)
    spread = float(longer.std())
    if spread == 0 and longer[0] != 0:
        return None
    if y.min() == y.max():
        return LengthControlled(rate, low, high, effect=0.0)
    x = np.tanh(longer / spread) if spread else np.zeros_like(longer)
    (a, b), variance = _fit_logistic(np.column_stack([np.ones_like(x), x]), y)
    margin = float(norm.ppf(0.5 + confidence / 2)) * math.sqrt(variance[0, 0])
    return LengthControlled(
        rate=float(expit(a)), low=float(expit(a - margin)), high=float(expit(a + margin)), effect=float(b)
    )


def position_bias(answers: Sequence[Sequence[str]], confidence: float = CONFIDENCE) -> PositionBias:
    """Measure the judge's position bias. `answers`: per valid pair, "A" (the first response) or "B", one per order asked.

    A pair judged in both orders counts for the first position if both answers are A, for the second if both are B, and as
    half if they agree on a response. A pair judged once, in random order, counts for the chosen position. The interval is
    that of `win_rate_interval`, the p-value that of the exact sign test. Raises ValueError if there are no answers.
    """
    chosen = ["tie" if len(set(pair)) > 1 else "win" if pair[0] == "A" else "loss" for pair in answers]
    rate, low, high = win_rate_interval(chosen, confidence)
    first, either = chosen.count("win"), len(chosen) - chosen.count("tie")
    p_value = float(binomtest(first, either).pvalue) if either else 1.0
    return PositionBias(rate, low, high, p_value, n=len(chosen))


def _fit_logistic(
    X: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Fit E[y] = sigmoid(X @ w), with a standard normal prior on w[1]. Return w (2,) and its sandwich variance (2, 2)."""
    prior = np.array([0.0, 1.0])

    def loss(w: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        z = X @ w
        value = np.logaddexp(0, z).sum() - y @ z + 0.5 * (prior * w * w).sum()
        return float(value), X.T @ (expit(z) - y) + prior * w

    start = np.array([logit(y.mean()), 0.0])
    w = minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-8 * len(y)}).x
    p = expit(X @ w)
    bread = np.linalg.inv((X.T * (p * (1 - p))) @ X + np.diag(prior))
    meat = (X.T * (y - p) ** 2) @ X
    return w, bread @ meat @ bread


def _count(outcomes: Sequence[str]) -> Counter[str]:
    counts = Counter(outcomes)
    unknown = sorted(set(counts) - {*SCORES, INVALID})
    if unknown:
        raise ValueError(f"unknown outcomes {unknown}; expected {[*SCORES, INVALID]}")
    return counts


def _score_variance(d: float, wins: int, losses: int, n: int) -> float:
    """Return the variance of wins - losses if P(win) - P(loss) = d, at the most likely probability of a loss (Tango's q21)."""
    a = 2 * n
    b = (2 * n - wins + losses) * d - wins - losses
    c = -losses * d * (1 - d)
    loss = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    return max(0.0, n * (2 * loss + d * (1 - d)))


def _sign_flip(total: int, ones: int, halves: int) -> float:
    """Return P(|sum| >= |total|) if each of `ones` steps of 2 and `halves` steps of 1 has a fair random sign."""
    if ones == halves == 0:
        return 1.0
    twos = np.zeros(2 * ones + 1)
    twos[::2] = binom.pmf(np.arange(ones + 1), ones, 0.5)
    # Index i of the convolution is the sum 2 i - (2 ones + halves).
    probability = np.convolve(twos, binom.pmf(np.arange(halves + 1), halves, 0.5))
    sums = 2 * np.arange(len(probability)) - (2 * ones + halves)
    return float(min(1.0, probability[np.abs(sums) >= abs(total)].sum()))
