"""The rows of every step and of every worker, as a pure function of (seed, step).

The global batch does not depend on the number of workers, so a run that resumes on another number sees the same data.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class BatchOrder:
    """Batches of `size` row numbers out of `rows`, reshuffled every epoch. An epoch may end inside a batch."""

    rows: int
    size: int
    seed: int

    def at(self, step: int) -> list[int]:
        """Row numbers of the global batch of a step, counted from 0."""
        first, end = step * self.size, (step + 1) * self.size
        epochs = range(first // self.rows, (end - 1) // self.rows + 1)
        stream = np.concatenate([self._epoch(epoch) for epoch in epochs])
        offset = first - epochs.start * self.rows
        return [int(row) for row in stream[offset : offset + self.size]]

    def _epoch(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(self.rows)


def split_batch(batch: list[int], costs: Sequence[float], workers: int, microbatches: int) -> list[list[list[int]]]:
    """Split a global batch into [worker][microbatch] -> row numbers: equally many rows each, balanced by cost.

    costs: one number per entry of `batch`. Rows are assigned from the most expensive down, each to the cheapest microbatch
    that is not full, so that forward passes that all workers run at the same time take equally long. len(batch) must be a
    multiple of workers * microbatches.
    """
    parts: list[list[int]] = [[] for _ in range(workers * microbatches)]
    totals = [0.0] * len(parts)
    size = len(batch) // len(parts)
    for index in sorted(range(len(batch)), key=lambda i: (-costs[i], i)):
        cheapest = min((p for p in range(len(parts)) if len(parts[p]) < size), key=lambda p: totals[p])
        parts[cheapest].append(batch[index])
        totals[cheapest] += costs[index]
    return [[parts[m * workers + w] for m in range(microbatches)] for w in range(workers)]
