import pytest

from cpo_ray.monitoring.displacement import displacement

STEADY = [-0.05 * step for step in range(60)]  # half a nat every ten steps


def test_a_steady_fall_is_reported_with_remedies():
    warning = displacement(STEADY)
    assert "2.7 nats below the reference's" in warning  # the mean of the last ten: 0.05 * 54.5
    assert "objective.beta" in warning
    assert "objective.gold_floor_weight" in warning


@pytest.mark.parametrize(
    "drift",
    [
        [],
        STEADY[:49],  # too short to tell
        [-drift for drift in STEADY],  # it rises
        [0.1 * drift for drift in STEADY],  # it falls, by less than a nat
        [drift if step < 40 else -1.0 for step, drift in enumerate(STEADY)],  # it has come back
        [-2.0] * 60,  # it is low, and stays
    ],
    ids=["empty", "short", "rising", "slight", "recovered", "level"],
)
def test_nothing_else_is_reported(drift):
    assert displacement(drift) is None


def test_old_steps_are_ignored():
    assert displacement([5.0] * 20 + STEADY) == displacement(STEADY)
