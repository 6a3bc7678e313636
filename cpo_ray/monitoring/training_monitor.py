"""The driver's handling of training metrics and notices: log them, show them, warn of likelihood displacement."""

from typing import Any

from rich.markup import escape

from cpo_ray.monitoring.console import Bar, say
from cpo_ray.monitoring.displacement import displacement
from cpo_ray.monitoring.metrics_log import MetricsLog
from cpo_ray.monitoring.prometheus import measure_step
from cpo_ray.monitoring.trackers import Tracker


class TrainingMonitor:
    """The callbacks of one training."""

    def __init__(self, metrics: MetricsLog, stage: str, progress: Bar, tracker: Tracker) -> None:
        self.metrics, self.stage, self.progress, self.tracker = metrics, stage, progress, tracker
        self.gold_drift: dict[int, float] = {}
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
            say(f"  step {metrics['step']}: validation loss {metrics['validation']['loss']:.4f}")
            return
        if "expected_loss" in metrics:
            loss, expected = metrics["loss"], metrics["expected_loss"]
            say(f"  first CPO loss {loss:.4f}, must be {expected:.4f}: the policy starts at the reference")
        self.progress.set_completed(metrics["step"], f"loss {metrics['loss']:.4f}")
        if "gold_drift" in metrics:
            self._check_displacement(metrics["step"], metrics["gold_drift"])

    def _check_displacement(self, step: int, drift: float) -> None:
        """Warn of likelihood displacement, once."""
        self.gold_drift[step] = drift
        warning = None if self.warned else displacement(list(self.gold_drift.values()))
        if warning:
            self.warned = True
            say(f"  [yellow]warning[/] step {step}: {escape(warning)}")
