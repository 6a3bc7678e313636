"""Metrics of a run for Prometheus and Grafana, exported by Ray. In Prometheus each name has the prefix `ray_`.

Without Ray in this process nothing is exported; metrics.jsonl has the curves anyway.
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
    "cpo_ray_left": "Units that the stage has still to do: the depth of its queue",
    "cpo_ray_tokens_per_second": "Tokens per second of a training step",
    "cpo_ray_loss": "The training loss",
    "cpo_ray_validation_loss": "The loss on held-out prompts",
    "cpo_ray_memory_gib": "Peak memory of the first training worker's GPU",
}
_labels = {"run": "", "stage": ""}


@contextlib.contextmanager
def metric_labels(run: str, stage: str) -> Iterator[None]:
    """Label the metrics within the block with run and stage."""
    _labels.update(run=run, stage=stage)
    try:
        yield
    finally:
        _labels.update(run="", stage="")


@contextlib.contextmanager
def measured_bar(title: str, total: float, unit: str) -> Iterator[Bar]:
    """`console.progress_bar` that also exports rate and remaining units as metrics."""
    with console.progress_bar(title, total, unit) as bar:
        measured = _MeasuredBar(bar, total, unit)
        yield measured
        measured.end()


def measure_step(metrics: dict[str, Any]) -> None:
    """Export one row of training metrics: of a step, or of a validation."""
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
    def __init__(self, bar: Bar, total: float, unit: str) -> None:
        self.bar, self.total, self.unit, self.done = bar, total, unit, 0.0
        _set("cpo_ray_left", total, unit)

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.bar.advance(amount, note)
        self._measure(self.done + amount)

    def set_completed(self, completed: float, note: str = "") -> None:
        self.bar.set_completed(completed, note)
        self._measure(completed)

    def end(self) -> None:
        _set("cpo_ray_left", 0, self.unit)

    def _measure(self, done: float) -> None:
        if done > self.done:  # a step repeated after a restart is counted once
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
    """The meter of that name, or None if Ray is not running in this process."""
    ray = sys.modules.get("ray")
    return _make_meter(name) if ray is not None and ray.is_initialized() else None


@cache
def _make_meter(name: str) -> Any:
    from ray.util.metrics import Counter, Gauge

    kind = Counter if name.endswith("_total") else Gauge
    return kind(name, description=METERS[name], tag_keys=LABELS)
