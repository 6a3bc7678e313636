"""Where the batches come from: rows stored on disk before training, or a stream that is sampled while training runs."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch.distributed as dist

from cpo_ray.errors import ClusterError, CpoRayError, TrainingError
from cpo_ray.records import SCORE, Group
from cpo_ray.training.batch_order import BatchOrder
from cpo_ray.training.rows import TrainingRows
from cpo_ray.training.task import GroupStream, Refusal, Task

COLUMNS = (
    "id",
    "prompt_ids",
    "candidate_ids",
    "candidate_kind",
    "rank",
    "similarity",
    "ref_logps",
    "ref_spread",
    SCORE.name,
)


@dataclass(frozen=True)
class Batch:
    """The global batch of a step: some of `rows`, by number, and the kinds of candidates that occur in any batch."""

    rows: TrainingRows
    numbers: list[int]
    kinds: list[str]

    @property
    def ids(self) -> list[str]:
        """The ids of its rows."""
        return [self.rows.ids[row] for row in self.numbers]


class BatchLoader(Protocol):
    """Global batches, the same on every worker."""

    def load(self, step: int) -> Batch:
        """The batch of a step, counted from 0. Call it for the steps in order. Raises Refusal for invalid rows."""


class StoredLoader:
    """Batches of rows that are all in memory, reshuffled each epoch."""

    def __init__(self, rows: TrainingRows, task: Task) -> None:
        self.rows, self.kinds = rows, rows.every_kind
        self.order = BatchOrder(len(rows.ids), task.training.prompts_per_step, task.seed)
        self.first = task.first_batch

    def load(self, step: int) -> Batch:
        """The rows of this step."""
        return Batch(self.rows, self.order.at(self.first + step), self.kinds)


class StreamLoader:
    """Batches of a stream. The first worker reads the stream and sends the groups of a step to all others."""

    def __init__(self, stream: GroupStream, task: Task, first: int) -> None:
        self.task = task
        self.stream = stream.groups(first) if dist.get_rank() == 0 else None

    def load(self, step: int) -> Batch:
        """The groups that were sampled for this step; waits for them."""
        message: list[Any] = [None]
        if self.stream is not None:
            message = [_next_groups(self.stream, step)]
        dist.broadcast_object_list(message, src=0)
        if isinstance(message[0], str):
            raise Refusal(message[0])
        rows = TrainingRows.from_groups(message[0], self.task)
        return Batch(rows, list(range(len(rows.ids))), rows.every_kind)


@contextlib.contextmanager
def open_loader(task: Task, finished: int) -> Iterator[BatchLoader]:
    """A loader of the batches from step `finished` on. Closes the stream at the end. Raises Refusal for invalid rows."""
    if task.stream is None:
        if task.rows is None:
            raise TrainingError(f"training `{task.stage}` has no rows")
        yield StoredLoader(TrainingRows.read(task.rows, task), task)
        return
    loader = StreamLoader(task.stream, task, finished)
    try:
        yield loader
    finally:
        if loader.stream is not None:
            loader.stream.close()  # type: ignore[attr-defined]


def _next_groups(stream: Iterator[tuple[int, list[Group]]], step: int) -> dict[str, list[Any]] | str:
    """The groups of the step, column by column, or the reason why there are none, if a restart would not help."""
    try:
        sampled_step, groups = next(stream)
    except ClusterError:
        raise
    except CpoRayError as error:
        return str(error)
    if sampled_step != step:
        raise TrainingError(f"the stream returned the groups of step {sampled_step} instead of step {step}")
    return {name: [group.get(name) for group in groups] for name in COLUMNS}  # only answers of the data have a score
