import math

import pytest

from study.estimates import mean_over_seeds, one_sided_p


def test_the_interval_is_students():
    """Of 1, 2, 3: mean 2, SD 1, t(.975, 2) = 4.3027, so 2 +- 4.3027 / sqrt(3)."""
    mean = mean_over_seeds([1.0, 2.0, 3.0])
    assert (mean.value, mean.deviation, mean.n) == (2.0, 1.0, 3)
    assert (mean.low, mean.high) == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-4)
    assert mean.t == pytest.approx(2 * math.sqrt(3))


def test_one_seed_has_no_interval():
    mean = mean_over_seeds([0.4])
    assert (mean.value, mean.low, mean.high, mean.t) == (0.4, None, None, None)
    with pytest.raises(ValueError, match="at least one seed"):
        mean_over_seeds([])


def test_one_sided_p():
    """t = 2 sqrt(3) = 3.4641 with 2 degrees of freedom: P(T > t) = (1 - t / sqrt(2 + t^2)) / 2 = .0371."""
    values = [1.0, 2.0, 3.0]
    exact = (1 - 3.4641016 / math.sqrt(2 + 12)) / 2
    assert one_sided_p(values, "greater") == pytest.approx(exact, abs=1e-6)
    assert one_sided_p(values, "less") == pytest.approx(1 - exact, abs=1e-6)
    assert one_sided_p(values, "greater", margin=2.0) == pytest.approx(0.5)
    assert one_sided_p([-1.0, -2.0, -3.0], "less") == pytest.approx(exact, abs=1e-6)


def test_values_without_spread_decide_by_their_sign():
    assert one_sided_p([1.0, 1.0], "greater") == 0.0
    assert one_sided_p([1.0, 1.0], "less") == 1.0
    assert one_sided_p([1.0, 1.0], "less", margin=1.0) == 0.5
    with pytest.raises(ValueError, match="at least two"):
        one_sided_p([1.0], "less")
