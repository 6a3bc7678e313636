"""What the driver does with the news of a training: keep it, show it, and raise the alarm."""

from typing import Any

from rich.markup import escape

from cpo_ray.alarm import displacement
from cpo_ray.meters import measure_step
from cpo_ray.progress import Bar, say
from cpo_ray.run import Run
from cpo_ray.tracking import Tracker


class Watcher:
    """Hears of every step of one training."""

    def __init__(self, run: Run, stage: str, progress: Bar, tracker: Tracker) -> None:
        self.run, self.stage, self.progress, self.tracker = run, stage, progress, tracker
        self.gold_drift: dict[int, float] = {}
        self.alarmed = False

    def tell(self, notice: str) -> None:
        """A line from the workers."""
        say(f"  [yellow]{escape(self.stage)}[/]: {escape(notice)}")

    def hear(self, metrics: dict[str, Any]) -> None:
        """One step's metrics, or the validation's."""
        self.run.metrics.append(metrics)
        self.tracker.log(metrics)
        measure_step(metrics)
        if "validation" in metrics:
            say(f"  step {metrics['step']}: validation loss {metrics['validation']['loss']:.4f}")
            return
        if "expected_loss" in metrics:
            seen, expected = metrics["loss"], metrics["expected_loss"]
            say(f"  first CPO loss {seen:.4f}, must be {expected:.4f}: the policy starts at the reference")
        self.progress.moveto(metrics["step"], f"loss {metrics['loss']:.4f}")
        if "gold_drift" in metrics:
            self._watch_the_gold(metrics["step"], metrics["gold_drift"])

    def _watch_the_gold(self, step: int, drift: float) -> None:
        """Warn of likelihood displacement, once."""
        self.gold_drift[step] = drift
        warning = None if self.alarmed else displacement(list(self.gold_drift.values()))
        if warning:
            self.alarmed = True
            say(f"  [yellow]warning[/] step {step}: {escape(warning)}")
