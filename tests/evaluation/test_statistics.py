import itertools

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit, xlogy
from scipy.stats import binomtest

from cpo_ray.evaluation.statistics import (
    holm,
    length_controlled_win_rate,
    paired_difference,
    position_bias,
    win_rate_interval,
)


def outcomes_of(wins, ties, losses, invalid=0):
    return ["win"] * wins + ["tie"] * ties + ["loss"] * losses + ["invalid"] * invalid


def by_row(outcomes):
    return {f"row{index:04d}": outcome for index, outcome in enumerate(outcomes)}


@pytest.mark.parametrize(("wins", "losses"), [(0, 10), (10, 0), (3, 7), (471, 529), (1, 0)])
def test_without_ties_the_interval_is_wilsons(wins, losses):
    rate, low, high = win_rate_interval(outcomes_of(wins, 0, losses))
    wilson = binomtest(wins, wins + losses).proportion_ci(method="wilson")
    assert rate == wins / (wins + losses)
    assert (low, high) == pytest.approx((wilson.low, wilson.high), abs=1e-7)


@pytest.mark.parametrize(("wins", "ties", "losses"), [(0, 43, 1), (5, 90, 9), (120, 300, 80), (7, 1, 2)])
def test_ends_of_the_interval_have_the_critical_score(wins, ties, losses):
    """Tango's closed form against a numerical search for the most likely nuisance parameter."""
    n = wins + ties + losses
    _, *ends = win_rate_interval(outcomes_of(wins, ties, losses))
    for end, z in zip(ends, (1.959964, -1.959964), strict=True):
        d = 2 * end - 1

        def unlikelihood(loss, d=d):
            return -sum(xlogy(k, p) for k, p in ((wins, loss + d), (losses, loss), (ties, 1 - 2 * loss - d)))

        bounds = (max(0.0, -d), (1 - d) / 2)
        loss = minimize_scalar(unlikelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
        score = (wins - losses - n * d) / np.sqrt(n * (2 * loss + d - d * d))
        assert score == pytest.approx(z, abs=1e-3)


def test_ties_narrow_the_interval_but_never_to_a_point():
    _, low, high = win_rate_interval(outcomes_of(0, 100, 0))
    z_squared = 1.959963984540054**2
    assert high - 0.5 == pytest.approx(z_squared / (100 + z_squared) / 2, abs=1e-7)
    assert low == pytest.approx(1 - high)
    _, few_low, few_high = win_rate_interval(outcomes_of(10, 80, 10))
    _, wide_low, wide_high = win_rate_interval(outcomes_of(50, 0, 50))
    assert few_high - few_low < wide_high - wide_low


def test_invalid_verdicts_are_left_out_and_unknown_ones_refused():
    assert win_rate_interval(outcomes_of(3, 2, 5, invalid=90)) == win_rate_interval(outcomes_of(3, 2, 5))
    with pytest.raises(ValueError, match="no valid verdicts"):
        win_rate_interval(["invalid"])
    with pytest.raises(ValueError, match="'draw'"):
        win_rate_interval(["win", "draw"])


@pytest.mark.parametrize("probabilities", [(0.2, 0.5, 0.3), (0.45, 0.05, 0.5), (0.02, 0.1, 0.88), (0.9, 0.1, 0.0)])
@pytest.mark.parametrize("n", [40, 400])
def test_interval_covers_the_true_rate(probabilities, n):
    rng = np.random.default_rng(5)
    draws = rng.multinomial(n, probabilities, size=500)
    truth = probabilities[0] + probabilities[1] / 2
    covered = 0
    for wins, ties, losses in draws:
        _, low, high = win_rate_interval(outcomes_of(wins, ties, losses))
        covered += low <= truth <= high
    assert covered / len(draws) == pytest.approx(0.95, abs=0.03)


def test_difference_is_paired_and_excludes_invalid_rows():
    a = by_row(["win", "win", "tie", "loss", "invalid", "win"])
    b = by_row(["loss", "win", "loss", "tie", "win", "invalid"])
    b["only in b"] = "win"
    difference = paired_difference(a, b, seed=1)
    assert difference.value == pytest.approx((1 + 0 + 0.5 - 0.5) / 4)
    assert (difference.n, difference.excluded) == (4, 3)
    assert paired_difference(b, a, seed=1).value == -difference.value
    assert paired_difference(a, b, seed=1) == difference


def test_difference_interval_is_the_bootstrap_over_rows():
    rng = np.random.default_rng(0)
    names = np.array(["win", "tie", "loss"])
    a, b = rng.choice(names, 200, p=[0.5, 0.2, 0.3]), rng.choice(names, 200, p=[0.4, 0.2, 0.4])
    difference = paired_difference(by_row(a), by_row(b), seed=3)
    scores = {"win": 1.0, "tie": 0.5, "loss": 0.0}
    deltas = np.array([scores[x] - scores[y] for x, y in zip(a, b, strict=True)])
    resampled = deltas[rng.integers(0, 200, size=(20_000, 200))].mean(axis=1)
    assert (difference.low, difference.high) == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=0.006)


def test_p_value_is_exact_by_enumeration():
    a = by_row(["win", "win", "tie", "win", "loss", "tie"])
    b = by_row(["loss", "tie", "loss", "loss", "tie", "tie"])
    deltas = [1.0, 0.5, 0.5, 1.0, -0.5]
    flips = [sum(s * d for s, d in zip(signs, deltas, strict=True)) for signs in itertools.product((1, -1), repeat=5)]
    expected = sum(abs(total) >= abs(sum(deltas)) for total in flips) / len(flips)
    assert paired_difference(a, b, seed=0).p_value == pytest.approx(expected)


def test_p_value_without_halves_is_the_sign_test():
    a, b = by_row(["win"] * 12 + ["loss"] * 4), by_row(["loss"] * 12 + ["win"] * 4)
    assert paired_difference(a, b, seed=0).p_value == pytest.approx(binomtest(12, 16).pvalue)


def test_a_model_has_no_difference_to_itself():
    same = by_row(["win", "tie", "loss"] * 10)
    difference = paired_difference(same, same, seed=0)
    assert (difference.value, difference.low, difference.high, difference.p_value) == (0, 0, 0, 1)


def test_p_value_keeps_its_level():
    rng = np.random.default_rng(7)
    names = np.array(["win", "tie", "loss"])
    p_values = [
        paired_difference(by_row(rng.choice(names, 60)), by_row(rng.choice(names, 60)), seed=0, resamples=10).p_value
        for _ in range(400)
    ]
    assert np.mean(np.array(p_values) < 0.05) <= 0.07


def test_a_comparison_without_common_prompts_is_refused():
    with pytest.raises(ValueError, match="both sides"):
        paired_difference({"x": "win"}, {"y": "loss"}, seed=0)
    with pytest.raises(ValueError, match="'draw'"):
        paired_difference({"x": "draw"}, {"x": "loss"}, seed=0)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def judged_by_length(rng, n, quality, bias, mean_difference=60):
    """Outcomes of a judge with log-odds `quality` for the candidate at equal lengths, plus `bias` if it is longer."""
    references = rng.gamma(2.0, 60.0, n)
    candidates = np.maximum(1, references + rng.normal(mean_difference, 80.0, n))
    longer = candidates - references
    wins = rng.random(n) < expit(quality + bias * np.tanh(longer / longer.std()))
    return np.where(wins, "win", "loss").tolist(), candidates, references


def test_length_control_removes_a_known_length_bias():
    outcomes, candidates, references = judged_by_length(np.random.default_rng(3), 20_000, quality=-0.5, bias=1.5)
    controlled = length_controlled_win_rate(outcomes, candidates, references)
    assert win_rate_interval(outcomes)[0] > 0.53  # the biased judge prefers the candidate
    assert controlled.rate == pytest.approx(expit(-0.5), abs=0.015)  # which is worse at equal lengths
    assert controlled.low < expit(-0.5) < controlled.high < 0.5
    assert controlled.effect == pytest.approx(1.5, abs=0.1)
    swapped = [{"win": "loss", "loss": "win"}[outcome] for outcome in outcomes]
    assert length_controlled_win_rate(swapped, references, candidates).rate == pytest.approx(1 - controlled.rate)


def test_length_control_does_not_change_the_rate_of_an_unbiased_judge():
    outcomes, candidates, references = judged_by_length(np.random.default_rng(4), 20_000, quality=0.4, bias=0.0)
    controlled = length_controlled_win_rate(outcomes, candidates, references)
    assert controlled.rate == pytest.approx(win_rate_interval(outcomes)[0], abs=0.01)
    assert controlled.effect == pytest.approx(0, abs=0.1)


def test_length_control_is_the_penalised_logistic_regression():
    linear_model = pytest.importorskip("sklearn.linear_model")
    outcomes = ["win", "tie", "loss", "win", "loss", "tie", "win", "loss", "win"]
    candidates, references = [50, 20, 10, 80, 30, 25, 60, 90, 12], [10, 22, 30, 20, 35, 20, 61, 40, 30]
    longer = np.subtract(candidates, references)
    x = np.tanh(longer / longer.std())[:, None]
    # A tie is half a win and half a loss.
    wins = np.array([{"win": 1, "tie": 0.5, "loss": 0}[outcome] for outcome in outcomes])
    fit = linear_model.LogisticRegression(C=1.0, tol=1e-10)
    fit.fit(np.vstack([x, x]), [1] * 9 + [0] * 9, sample_weight=[*wins, *(1 - wins)])
    controlled = length_controlled_win_rate(outcomes, candidates, references)
    assert controlled.rate == pytest.approx(expit(fit.intercept_[0]), abs=1e-5)
    assert controlled.effect == pytest.approx(fit.coef_[0, 0], abs=1e-4)


def test_length_control_covers_the_true_rate():
    rng = np.random.default_rng(6)
    covered = 0
    for _ in range(300):
        found = length_controlled_win_rate(*judged_by_length(rng, 300, quality=-0.3, bias=1.0, mean_difference=20))
        covered += found.low <= expit(-0.3) <= found.high
    assert covered / 300 == pytest.approx(0.95, abs=0.035)


def test_without_length_differences_the_controlled_rate_is_the_win_rate():
    outcomes = outcomes_of(30, 10, 20, invalid=5)
    same = length_controlled_win_rate(outcomes, [7] * 65, [7] * 65)
    assert same.rate == pytest.approx(35 / 60)
    assert same.effect == 0
    wilson = win_rate_interval(outcomes_of(12, 0, 0))
    alike = length_controlled_win_rate(outcomes_of(12, 0, 0), range(12), [3] * 12)
    assert (alike.rate, alike.low, alike.high) == wilson


def test_lengths_that_separate_winners_from_losers_have_a_finite_effect():
    controlled = length_controlled_win_rate(outcomes_of(10, 0, 10), [20] * 10 + [5] * 10, [10] * 20)
    assert 0 < controlled.low < controlled.rate < controlled.high < 1
    assert 1 < controlled.effect < 10


def test_length_control_returns_none_if_length_and_quality_are_not_separable():
    assert length_controlled_win_rate(["win", "loss"], [9, 9], [4, 4]) is None
    with pytest.raises(ValueError, match="no valid verdicts"):
        length_controlled_win_rate(["invalid"], [9], [4])


def test_position_bias_by_hand():
    """30 pairs for the first position, 10 for the second, 60 for a response: (30 + 60 / 2) / 100."""
    both = position_bias([["A", "A"]] * 30 + [["B", "B"]] * 10 + [["A", "B"]] * 25 + [["B", "A"]] * 35)
    assert (both.rate, both.n) == (0.6, 100)
    assert both.p_value == pytest.approx(binomtest(30, 40).pvalue)
    assert (both.rate, both.low, both.high) == win_rate_interval(outcomes_of(30, 60, 10))
    once = position_bias([["A"]] * 7 + [["B"]] * 13)
    wilson = binomtest(7, 20).proportion_ci(method="wilson")
    assert (once.low, once.high) == pytest.approx((wilson.low, wilson.high), abs=1e-7)
    assert once.p_value == pytest.approx(binomtest(7, 20).pvalue)
    fair = position_bias([["A", "B"], ["B", "A"]])
    assert (fair.rate, fair.p_value) == (0.5, 1.0)
    with pytest.raises(ValueError, match="no valid verdicts"):
        position_bias([])
