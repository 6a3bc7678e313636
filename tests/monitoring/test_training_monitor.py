from types import SimpleNamespace

import pytest

from cpo_ray.artifacts import read_jsonl
from cpo_ray.monitoring.metrics_log import MetricsLog
from cpo_ray.monitoring.trackers import Tracker
from cpo_ray.monitoring.training_monitor import TrainingMonitor, first_step


@pytest.fixture
def monitored(tmp_path):
    """A monitor of a training, the tracker's calls, and the bar's calls."""
    tracked, bar = [], []
    progress = SimpleNamespace(set_completed=lambda *state: bar.append(state))
    return (
        TrainingMonitor(
            MetricsLog(tmp_path / "metrics.jsonl"), "cpo", progress, Tracker([lambda *numbers: tracked.append(numbers)])
        ),
        tracked,
        bar,
    )


def test_a_step_is_logged_shown_and_tracked(monitored, tmp_path, capsys):
    monitor, tracked, bar = monitored
    monitor.on_metrics({"stage": "cpo", "step": 1, "loss": 2.0, "expected_loss": 2.0, "gold_drift": 0.0})
    monitor.on_metrics({"stage": "cpo", "step": 1, "validation": {"loss": 3.0}})
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 1]
    assert bar == [(1, "loss 2.0000")]
    assert tracked[1] == ({"validation/loss": 3.0}, 1)
    printed = capsys.readouterr().out
    assert "first loss 2.0000, must be 2.0000" in printed
    assert "step 1: validation loss 3.0000\n" in printed
    monitor.on_metrics({"stage": "cpo", "step": 2, "validation": {"loss": 3.0, "joint_loss": 60.0}})
    assert "step 2: validation loss 3.0000, joint loss 60.0000\n" in capsys.readouterr().out


def test_likelihood_displacement_is_reported_once(monitored, capsys):
    monitor, *_ = monitored
    for step in range(1, 90):
        monitor.on_metrics({"stage": "cpo", "step": step, "loss": 1.0, "gold_drift": -0.1 * step})
    assert capsys.readouterr().out.count("likelihood displacement") == 1


def test_in_a_later_round_the_gold_is_also_measured_against_the_first_reference(monitored, capsys):
    """It loses 0.6 nats in the round, too little for a warning, after 2 nats in the rounds before."""
    monitor, *_ = monitored
    for shift, warned in ((0.0, 0), (2.0, 0), (-2.0, 1)):
        later = TrainingMonitor(monitor.metrics, "cpo-2", monitor.progress, monitor.tracker, shift)
        for step in range(1, 61):
            later.on_metrics({"stage": "cpo-2", "step": step, "loss": 1.0, "gold_drift": -0.01 * step})
        printed = capsys.readouterr().out
        assert printed.count("likelihood displacement") == warned
        assert ("nats below the first reference's" in printed) == bool(warned)


def test_a_fall_that_a_moving_reference_hides_is_reported(monitored, capsys):
    monitor, *_ = monitored
    for step in range(1, 61):
        rows = {"gold_drift": -0.05 * ((step - 1) % 10), "reference_step": 10 * ((step - 1) // 10)}
        monitor.on_metrics({"stage": "cpo", "step": step, "loss": 1.0} | rows)
    assert capsys.readouterr().out.count("nats below the first reference's") == 1


def test_notices_of_the_workers_are_printed(monitored, capsys):
    monitored[0].on_notice("head size 100 [not supported]; SDPA is used")
    assert "cpo: head size 100 [not supported]; SDPA is used" in capsys.readouterr().out


def test_the_first_step_is_a_line_with_its_tolerance():
    exact = {"loss": 19.9873, "expected_loss": 19.9872, "loss_tolerance": 0.0021}
    assert first_step(exact) == (
        "first loss 19.9873, must be 19.9872 (tolerance 0.0021): the policy starts at the reference"
    )
    rounded = {
        "loss": 24.1,
        "expected_loss": 19.9872,
        "first_drift": 0.05,
        "drift_tolerance": 0.15,
        "rounding_loss": 4.45,
    }
    assert first_step(rounded) == (
        "first loss 24.1000, must be 19.9872 + up to 4.4500 for rounding in bf16 (0.0500 nat per sqrt(token), tolerance "
        "0.1500): the policy starts at the reference"
    )
    assert first_step(exact | {"step": 51}).startswith("step 51: first loss under a new reference 19.9873, must be")


def test_a_beta_that_rounding_weakens_is_a_warning(monitored, capsys):
    rounded = {"first_drift": 0.05, "drift_tolerance": 0.15, "rounding_loss": 4.45}
    for share, warnings in ((0.95, 0), (0.75, 1)):
        monitored[0].on_metrics(
            {"stage": "cpo", "step": 1, "loss": 2.0, "expected_loss": 2.0, "beta_share": share} | rounded
        )
        assert capsys.readouterr().out.count("weakens beta by 25%") == warnings
