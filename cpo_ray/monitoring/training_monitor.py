"""The driver's handling of training metrics and notices: log them, show them, warn of likelihood displacement."""

from typing import Any

from rich.markup import escape

from cpo_ray.monitoring.console import Bar, say
from cpo_ray.monitoring.displacement import displacement, first_drift
from cpo_ray.monitoring.metrics_log import MetricsLog
from cpo_ray.monitoring.prometheus import measure_step
from cpo_ray.monitoring.trackers import Tracker

LEAST_BETA_SHARE = 0.9
"""The user is warned if rounding noise in bf16 leaves a smaller share of beta."""


def first_step(metrics: dict[str, Any]) -> str:
    """The metrics of the first step of stage `cpo`, which checks that the policy is the reference, in a line."""
    step = metrics.get("step", 1)
    what = f"step {step}: first loss under a new reference" if step > 1 else "first loss"
    text = f"{what} {metrics['loss']:.4f}, must be {metrics['expected_loss']:.4f}"
    if "drift_tolerance" in metrics:
        drift, tolerance, rise = (metrics[name] for name in ("first_drift", "drift_tolerance", "rounding_loss"))
        text += f" + up to {rise:.4f} for rounding in bf16 ({drift:.4f} nat per sqrt(token), tolerance {tolerance:.4f})"
    elif "loss_tolerance" in metrics:
        text += f" (tolerance {metrics['loss_tolerance']:g})"
    return f"{text}: the policy starts at the reference"


def weakened_beta(share: float) -> str:
    """A warning that rounding noise leaves only this share of beta."""
    return (
        f"rounding in bf16 weakens beta by {1 - share:.0%}: the noise of the scores is large at this beta. Train in float32 "
        "(training.precision: fp32) or with a smaller objective.beta."
    )


class TrainingMonitor:
    """The callbacks of one training.

    shift: in a later round of iterated CPO, the gold's mean log-prob under the round's reference minus that under the first
    reference, nats: displacement is measured against both.
    """

    def __init__(self, metrics: MetricsLog, stage: str, progress: Bar, tracker: Tracker, shift: float = 0.0) -> None:
        self.metrics, self.stage, self.progress, self.tracker = metrics, stage, progress, tracker
        self.shift = shift
        self.gold_drift: dict[int, float] = {}
        self.reference_step: dict[
            int, int
        ] = {}  # in a stream whose reference moves, the steps after which it was taken
        self.warned = False

    def on_notice(self, notice: str) -> None:
        """Print a message from the workers."""
        say(f"  [yellow]{escape(self.stage)}[/]: {escape(notice)}")

    def on_metrics(self, metrics: dict[str, Any]) -> None:
        """Handle the metrics of one step, or of a validation."""
        self.metrics.append(metrics)
        self.tracker.log(metrics)
        measure_step(metrics)
        if "validation" in metrics:
            loss, joint = metrics["validation"]["loss"], metrics["validation"].get("joint_loss")
            chosen_by = "" if joint is None else f", joint loss {joint:.4f}"
            say(f"  step {metrics['step']}: validation loss {loss:.4f}{chosen_by}")
            return
        if "expected_loss" in metrics:
            say(f"  {first_step(metrics)}")
            if metrics.get("beta_share", 1.0) < LEAST_BETA_SHARE:
                say(f"  [yellow]warning[/] {weakened_beta(metrics['beta_share'])}")
        self.progress.set_completed(metrics["step"], f"loss {metrics['loss']:.4f}")
        if "gold_drift" in metrics:
            self.reference_step[metrics["step"]] = metrics.get("reference_step", 0)
            self._check_displacement(metrics["step"], metrics["gold_drift"])

    def _check_displacement(self, step: int, drift: float) -> None:
        """Warn of likelihood displacement against the reference or the first reference, once."""
        self.gold_drift[step] = drift
        if self.warned:
            return
        warning = displacement(list(self.gold_drift.values()))
        if warning is None and (self.shift or self.reference_step[step]):
            warning = displacement(first_drift(self.gold_drift, self.reference_step, self.shift), "first reference")
        if warning:
            self.warned = True
            say(f"  [yellow]warning[/] step {step}: {escape(warning)}")
