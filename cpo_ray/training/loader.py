"""Where a step's rows come from: from the disk, all there before training, or from a stream that samples meanwhile."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch.distributed as dist

from cpo_ray.errors import ClusterError, CpoRayError, TrainingError
from cpo_ray.records import Group
from cpo_ray.training.batch_order import Batches
from cpo_ray.training.task import GroupStream, Refusal, Rows, Task

COLUMNS = ("id", "prompt_ids", "candidate_ids", "candidate_kind", "rank", "ref_logps")


@dataclass(frozen=True)
class Batch:
    """A step's global batch: some of `rows`, by number, and the kinds of candidates that occur in any batch."""

    rows: Rows
    numbers: list[int]
    kinds: list[str]


class Source(Protocol):
    """The global batches, the same on every worker."""

    def at(self, step: int) -> Batch:
        """The batch of a step, counted from 0. Steps are asked for in order. Raises Refusal for bad rows."""


class Stored:
    """Rows that are all in memory, shuffled anew each epoch."""

    def __init__(self, rows: Rows, task: Task) -> None:
        self.rows, self.kinds = rows, rows.every_kind
        self.batches = Batches(len(rows.ids), task.training.prompts_per_step, task.seed)

    def at(self, step: int) -> Batch:
        """The rows whose turn it is."""
        return Batch(self.rows, self.batches.at(step), self.kinds)


class Streamed:
    """Groups fresh from the stream, which the first worker draws from; every worker is given all of a step's."""

    def __init__(self, stream: GroupStream, task: Task, first: int) -> None:
        self.task = task
        self.stream = stream.groups(first) if dist.get_rank() == 0 else None

    def at(self, step: int) -> Batch:
        """The groups that have been sampled for this step; waits for them."""
        letter: list[Any] = [None]
        if self.stream is not None:
            letter = [_draw(self.stream, step)]
        dist.broadcast_object_list(letter, src=0)
        if isinstance(letter[0], str):
            raise Refusal(letter[0])
        rows = Rows.of_groups(letter[0], self.task)
        return Batch(rows, list(range(len(rows.ids))), rows.every_kind)


@contextlib.contextmanager
def open_source(task: Task, finished: int) -> Iterator[Source]:
    """The batches from step `finished` on; what samples them ends with the block. Raises Refusal for bad rows."""
    if task.stream is None:
        if task.rows is None:
            raise TrainingError(f"training `{task.stage}` was given no rows")
        yield Stored(Rows.read(task.rows, task), task)
        return
    source = Streamed(task.stream, task, finished)
    try:
        yield source
    finally:
        if source.stream is not None:
            source.stream.close()  # type: ignore[attr-defined]


def _draw(stream: Iterator[tuple[int, list[Group]]], step: int) -> dict[str, list[Any]] | str:
    """The step's groups, column by column, or why there are none and a restart would bring none either."""
    try:
        there, groups = next(stream)
    except ClusterError:
        raise
    except CpoRayError as error:
        return str(error)
    if there != step:
        raise TrainingError(f"the stream gave the groups of step {there} where those of step {step} were due")
    return {name: [group[name] for group in groups] for name in COLUMNS}  # type: ignore[literal-required]
