"""Time shared between the units of one actor."""

import pytest

from cpo_ray.sampling.time_shares import TimeShares


def test_units_in_progress_at_once_share_the_actors_time():
    now = [0.0]
    shares = TimeShares(lambda: now[0])
    now[0] = 5.0  # no unit is in progress: the time belongs to none
    with shares.unit() as first:
        now[0] = 7.0
        with shares.unit() as second:
            now[0] = 11.0
            assert (first(), second()) == (4.0, 2.0)
        now[0] = 12.0
        assert first() == 5.0
    now[0] = 20.0
    with shares.unit() as third:
        now[0] = 21.0
        assert third() == pytest.approx(1.0)
