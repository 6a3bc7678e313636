"""What Ray's metrics, and with them Prometheus and Grafana, see of a run. Prometheus knows each name with `ray_` before it.

Where Ray does not run in this process, nothing is measured and nothing is lost: metrics.jsonl has the curves.
"""

import contextlib
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

from cpo_ray.monitoring import console
from cpo_ray.monitoring.console import Bar

LABELS = ("run", "stage", "unit")
METERS = {
    "cpo_ray_units_total": "Rows, steps or answers that a stage has finished; its rate is rows/s",
    "cpo_ray_left": "What is still to do in the stage: the depth of its queue",
    "cpo_ray_tokens_per_second": "Tokens that a training step handled, by its seconds",
    "cpo_ray_loss": "The training loss",
    "cpo_ray_validation_loss": "The loss on held-out prompts",
    "cpo_ray_memory_gib": "Peak memory of the first training worker's GPU",
}
_labels = {"run": "", "stage": ""}


@contextlib.contextmanager
def measuring(run: str, stage: str) -> Iterator[None]:
    """Label what is measured within the block."""
    _labels.update(run=run, stage=stage)
    try:
        yield
    finally:
        _labels.update(run="", stage="")


@contextlib.contextmanager
def bar(title: str, total: float, unit: str) -> Iterator[Bar]:
    """`console.bar`, measured."""
    with console.bar(title, total, unit) as shown:
        measured = _MeasuredBar(shown, total, unit)
        yield measured
        measured.end()


def measure_step(metrics: dict[str, Any]) -> None:
    """One row of a training's metrics: a step's, or a validation's."""
    if "validation" in metrics:
        _set("cpo_ray_validation_loss", metrics["validation"]["loss"], "nats")
        return
    for name, key, unit in (
        ("cpo_ray_loss", "loss", "nats"),
        ("cpo_ray_tokens_per_second", "tokens_per_second", "tokens"),
        ("cpo_ray_memory_gib", "memory_gib", "GiB"),
    ):
        if key in metrics:
            _set(name, metrics[key], unit)


class _MeasuredBar:
    def __init__(self, shown: Bar, total: float, unit: str) -> None:
        self.shown, self.total, self.unit, self.done = shown, total, unit, 0.0
        _set("cpo_ray_left", total, unit)

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.shown.advance(amount, note)
        self._measure(self.done + amount)

    def moveto(self, completed: float, note: str = "") -> None:
        self.shown.moveto(completed, note)
        self._measure(completed)

    def end(self) -> None:
        _set("cpo_ray_left", 0, self.unit)

    def _measure(self, done: float) -> None:
        if done > self.done:  # a step again after a restart is counted once
            meter = _meter("cpo_ray_units_total")
            if meter is not None:
                meter.inc(done - self.done, tags=_labels | {"unit": self.unit})
            self.done = done
        _set("cpo_ray_left", max(0.0, self.total - self.done), self.unit)


def _set(name: str, value: float, unit: str) -> None:
    meter = _meter(name)
    if meter is not None:
        meter.set(float(value), tags=_labels | {"unit": unit})


def _meter(name: str) -> Any:
    """The meter of that name, or None while Ray does not run here."""
    ray = sys.modules.get("ray")
    return _make_meter(name) if ray is not None and ray.is_initialized() else None


@cache
def _make_meter(name: str) -> Any:
    from ray.util.metrics import Counter, Gauge

    kind = Counter if name.endswith("_total") else Gauge
    return kind(name, description=METERS[name], tag_keys=LABELS)
