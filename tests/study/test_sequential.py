import math

import numpy as np
import pytest
from scipy.stats import norm

from study.sequential import Rejection, bounds, holm_over_looks, nominal_levels

TWO_LOOKS = (0.5, 1.0)


@pytest.mark.parametrize(
    ("alpha", "constant"),  # Jennison and Turnbull, Group Sequential Methods (2000), table 2.3, K = 2
    [(0.01, 2.580), (0.05, 1.977), (0.1, 1.678)],
)
def test_bounds_are_those_of_the_published_table(alpha, constant):
    first, last = bounds(alpha, TWO_LOOKS)
    assert last == pytest.approx(constant, abs=5e-4)
    assert first == pytest.approx(constant * math.sqrt(2), abs=1e-3)


def test_the_levels_of_two_equal_looks():
    assert nominal_levels(0.05, TWO_LOOKS) == pytest.approx((0.00517, 0.04799), abs=1e-4)


def test_one_look_is_the_ordinary_test():
    assert bounds(0.05, (1.0,)) == pytest.approx((1.95996,), abs=1e-5)
    assert nominal_levels(0.05, (1.0,)) == pytest.approx((0.05,))


@pytest.mark.parametrize("information", [(0.25, 1.0), (0.5, 1.0), (0.8, 1.0)])
def test_a_simulated_study_without_an_effect_crosses_the_bounds_with_probability_alpha(information):
    rng, studies = np.random.default_rng(5), 400_000
    first, rest = rng.standard_normal((2, studies))
    second = math.sqrt(information[0]) * first + math.sqrt(1 - information[0]) * rest
    low, high = bounds(0.05, information)
    crossed = (abs(first) > low) | (abs(second) > high)
    assert crossed.mean() == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / studies))


@pytest.mark.parametrize(
    ("alpha", "information"), [(0.0, TWO_LOOKS), (0.05, (0.5, 0.9)), (0.05, ()), (0.05, (0.2, 0.5, 1.0))]
)
def test_other_looks_are_refused(alpha, information):
    with pytest.raises(ValueError, match="expected 0 < alpha < 1 and one or two looks"):
        bounds(alpha, information)


def test_holm_with_one_look():
    """With alpha .05 and three hypotheses: .01 <= .05 / 3, .02 <= .05 / 2, .06 > .05."""
    standings = holm_over_looks("abc", [{"a": 0.02, "b": 0.06, "c": 0.01}], 0.05, (1.0,))
    assert {name: item.rejection is not None for name, item in standings.items()} == {"a": True, "b": False, "c": True}
    assert standings["a"].level == pytest.approx(0.025)
    assert standings["b"].level == pytest.approx(0.05)
    assert standings["c"].level == pytest.approx(0.05 / 3)


def test_a_larger_p_value_is_not_rejected_past_one_that_was_not():
    standings = holm_over_looks("abc", [{"a": 0.02, "b": 0.02, "c": 0.03}], 0.05, (1.0,))
    assert not any(item.rejection for item in standings.values())


def test_a_rejection_lasts_and_leaves_its_share_to_the_others():
    looks = [{"a": 1e-4, "b": 0.3}, {"a": 0.9, "b": 0.03}]
    standings = holm_over_looks("ab", looks, 0.05, TWO_LOOKS)
    level = nominal_levels(0.025, TWO_LOOKS)[0]
    assert standings["a"].rejection == Rejection(1, 1e-4, level)
    assert standings["b"].rejection.look == 2
    assert standings["b"].level == pytest.approx(2 * norm.sf(1.977), abs=1e-4)  # alone, so at .05 and not at .025


def test_a_hypothesis_that_is_not_tested_yet_counts_among_those_left():
    standings = holm_over_looks("ab", [{"a": 0.03}], 0.05, (1.0,))
    assert standings["a"].rejection is None
    assert "b" not in standings
