import pytest

from cpo_ray.monitoring.displacement import displacement, first_drift

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


def test_where_the_reference_moves_the_drift_goes_on_from_that_of_the_new_reference():
    drift = {step: -0.25 * ((step - 1) % 4) for step in range(1, 9)}  # 0, -0.25, -0.5, -0.75, and again
    moved = {step: 4 * ((step - 1) // 4) for step in range(1, 9)}
    mean = (0 - 0.25 - 0.5 - 0.75) / 4  # fewer than five steps
    assert first_drift(drift, moved) == [*list(drift.values())[:4], *(mean + drift[step] for step in range(5, 9))]
    assert first_drift(drift, {}, shift=-1.0) == [each - 1 for each in drift.values()]
    assert first_drift({}, {}) == []


def test_a_fall_that_a_moving_reference_hides_is_reported_against_the_first():
    drift = {step: -0.05 * ((step - 1) % 10) for step in range(1, 61)}
    moved = {step: 10 * ((step - 1) // 10) for step in range(1, 61)}
    assert displacement(list(drift.values())) is None
    # Five references, each -0.35 (the mean of its last five steps) below the one before; the last window's mean is -0.225.
    assert "2.0 nats below the first reference's" in displacement(first_drift(drift, moved), "first reference")
