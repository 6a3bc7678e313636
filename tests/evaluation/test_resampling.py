import math

import numpy as np
import pytest

from cpo_ray.evaluation.resampling import Measured, assign_groups, bootstrap_means, jackknife, share

NAN = math.nan


def test_means_leave_out_what_is_not_defined_and_count_it():
    found = bootstrap_means(np.array([[1.0, NAN, NAN], [3.0, 5.0, NAN], [5.0, NAN, NAN]]), seed=1)
    assert [(estimate["value"], estimate["n"]) for estimate in found] == [(3.0, 3), (5.0, 1), (None, 0)]
    assert found[0]["low"] < 3 < found[0]["high"]
    assert (found[1]["low"], found[1]["high"], found[2]["low"]) == (None, None, None), "one prompt gives no interval"
    assert bootstrap_means(np.zeros((0, 1)), seed=1) == [{"value": None, "low": None, "high": None, "n": 0}]


def test_the_bootstrap_has_the_width_of_the_normal_interval():
    values = np.random.default_rng(3).normal(2, 1.5, size=(400, 1))
    (found,) = bootstrap_means(values, seed=1)
    margin = 1.96 * values.std() / math.sqrt(400)
    assert (found["low"], found["high"]) == pytest.approx((found["value"] - margin, found["value"] + margin), abs=0.02)


def test_a_column_has_the_same_interval_whatever_stands_beside_it():
    values = np.random.default_rng(3).normal(size=(50, 3))
    assert bootstrap_means(values, seed=1)[1] == pytest.approx(bootstrap_means(values[:, 1:2], seed=1)[0])


def test_a_paired_difference_is_narrower_than_its_parts():
    rng = np.random.default_rng(3)
    prompt = rng.normal(size=200)
    ours, theirs = prompt + 0.1 * rng.normal(size=200) + 0.3, prompt + 0.1 * rng.normal(size=200)
    alone, _, difference = bootstrap_means(np.column_stack([ours, theirs, ours - theirs]), seed=1)
    assert 0.2 < difference["low"] < difference["high"] < 0.4
    assert difference["high"] - difference["low"] < (alone["high"] - alone["low"]) / 4


def test_a_share_of_nothing_has_an_interval_of_some_width():
    found = share(np.zeros(100))
    assert (found["value"], found["low"], found["n"]) == (0.0, 0.0, 100)
    assert found["high"] == pytest.approx(0.037, abs=1e-3), "Wilson's: z^2 / (n + z^2)"
    assert share(np.zeros(0)) == {"value": None, "low": None, "high": None, "n": 0}


def test_the_jackknife_of_a_mean_is_student_s_interval():
    """Leaving out one row after another, the jackknife's variance of a mean is the usual one, exactly."""
    values = np.array([1.0, 4.0, 2.0, 7.0])
    (found,) = jackknife(lambda kept: [Measured(float(values[kept].mean()), 4)], assign_groups(4, seed=1))
    margin = 3.182446 * values.std(ddof=1) / 2  # t with 3 degrees of freedom
    assert found["value"] == 3.5
    assert (found["low"], found["high"]) == pytest.approx((3.5 - margin, 3.5 + margin))


def test_the_jackknife_leaves_out_every_row_once():
    left_out = []
    jackknife(lambda kept: left_out.append(np.flatnonzero(~kept)) or [Measured(0.0, 50)], assign_groups(50, seed=1))
    assert len(left_out) == 1 + 20
    assert sorted(np.concatenate(left_out).tolist()) == list(range(50))


def test_a_statistic_that_is_not_defined_has_no_interval():
    def statistics(kept):
        return [Measured(NAN, 0), Measured(1.0 if kept.all() else NAN, 3)]

    assert jackknife(statistics, assign_groups(3, seed=1)) == [
        {"value": None, "low": None, "high": None, "n": 0},
        {"value": 1.0, "low": None, "high": None, "n": 3},
    ]
    assert jackknife(lambda kept: [Measured(2.0, 1)], assign_groups(1, seed=1))[0]["low"] is None
