"""Messages between training workers and driver: a Ray actor, because neither can call the other."""

from dataclasses import dataclass, field
from typing import Any

import ray

Metrics = dict[str, Any]


@dataclass
class Messages:
    """What the driver has not taken yet."""

    metrics: list[Metrics] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


@ray.remote(num_cpus=0)
class Mailbox:
    """Workers post metrics, notices and refusals; the driver takes them, and requests a checkpoint before it must stop."""

    def __init__(self) -> None:
        self.messages = Messages()
        self.refusal: str | None = None
        self.save_is_requested = False
        self.saved_step: int | None = None
        self.started, self.checkpoint_step = False, 0
        self.unlogged: list[Metrics] = []

    def report_start(self, step: int, rank: int) -> None:
        """A worker starts after `step`: for the first time, or again because workers were lost."""
        if self.started and rank == 0:
            self.messages.notices.append(f"workers were lost: resuming from step {step}")
        self.started = self.started or rank == 0
        self.report_checkpoint(step)

    def report_checkpoint(self, step: int) -> None:
        """There is a checkpoint of `step`."""
        self.checkpoint_step = max(self.checkpoint_step, step)

    def last_checkpoint(self) -> int:
        """The step of the newest checkpoint."""
        return self.checkpoint_step

    def post_metrics(self, metrics: Metrics) -> bool:
        """Post the metrics of one step. Returns whether the driver requests a checkpoint."""
        self.messages.metrics.append(metrics)
        return self.save_is_requested

    def save_requested(self) -> bool:
        """Whether the driver requests a checkpoint."""
        return self.save_is_requested

    def post_notice(self, notice: str) -> None:
        """Post a line for the user."""
        self.messages.notices.append(notice)

    def refuse(self, reason: str) -> None:
        """Training must not continue. The first reason counts."""
        self.refusal = self.refusal or reason

    def refusal_reason(self) -> str | None:
        """Why training must not continue, if it must not."""
        return self.refusal

    def take_messages(self) -> Messages:
        """The messages since the last call."""
        messages, self.messages = self.messages, Messages()
        self.unlogged = messages.metrics
        return messages

    def mark_logged(self) -> None:
        """The driver has written the metrics that it took last to disk."""
        self.unlogged = []

    def is_logged(self, step: int) -> bool:
        """Whether the driver has written all posted metrics up to those of `step` to disk."""
        return all(metrics["step"] > step for metrics in (*self.unlogged, *self.messages.metrics))

    def request_save(self) -> None:
        """The driver must stop: request a checkpoint soon."""
        self.save_is_requested = True

    def report_requested_save(self, step: int) -> None:
        """A requested checkpoint is in the storage."""
        self.save_is_requested, self.saved_step = False, step

    def requested_save_step(self) -> int | None:
        """The step of a requested checkpoint, once it is in the storage."""
        return self.saved_step
