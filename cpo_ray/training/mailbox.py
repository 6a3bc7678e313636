"""Where workers and driver pin what the other must hear: a Ray actor, since neither can call the other."""

from dataclasses import dataclass, field
from typing import Any

import ray

Metrics = dict[str, Any]


@dataclass
class News:
    """What the driver has not heard yet."""

    metrics: list[Metrics] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


@ray.remote(num_cpus=0)
class Board:
    """Workers record, tell and refuse; the driver takes the news, and asks for a checkpoint where the machine may go away."""

    def __init__(self) -> None:
        self.news = News()
        self.refusal: str | None = None
        self.wanted = False
        self.saved_step: int | None = None
        self.begun, self.step = False, 0
        self.unwritten: list[Metrics] = []

    def begin(self, step: int, rank: int) -> None:
        """A worker goes on after `step`: for the first time, or because some were lost."""
        if self.begun and rank == 0:
            self.news.notices.append(f"workers were lost: going on from step {step}")
        self.begun = self.begun or rank == 0
        self.reach(step)

    def reach(self, step: int) -> None:
        """There is a checkpoint of `step`."""
        self.step = max(self.step, step)

    def reached(self) -> int:
        """The step of the newest checkpoint."""
        return self.step

    def record(self, metrics: Metrics) -> bool:
        """One step's metrics. Answers whether a checkpoint is wanted at once."""
        self.news.metrics.append(metrics)
        return self.wanted

    def save_wanted(self) -> bool:
        """Whether a checkpoint is wanted at once."""
        return self.wanted

    def tell(self, notice: str) -> None:
        """A line for the user."""
        self.news.notices.append(notice)

    def refuse(self, reason: str) -> None:
        """Training must not go on. The first reason counts."""
        self.refusal = self.refusal or reason

    def refused(self) -> str | None:
        """Why training refused to go on, if it did."""
        return self.refusal

    def take(self) -> News:
        """What is new since the last call."""
        news, self.news = self.news, News()
        self.unwritten = news.metrics
        return news

    def written(self) -> None:
        """The driver has written down the metrics that it took last."""
        self.unwritten = []

    def knows(self, step: int) -> bool:
        """Whether the driver has written down all metrics that were recorded up to those of `step`."""
        return all(metrics["step"] > step for metrics in (*self.unwritten, *self.news.metrics))

    def want_save(self) -> None:
        """The driver has been told to end: save soon."""
        self.wanted = True

    def saved(self, step: int) -> None:
        """A wanted checkpoint is in the storage."""
        self.wanted, self.saved_step = False, step

    def saved_at(self) -> int | None:
        """The step of a wanted checkpoint, once it is in the storage."""
        return self.saved_step
