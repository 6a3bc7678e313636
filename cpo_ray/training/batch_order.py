"""Which rows a step trains on, and which of them each worker takes: a pure function of (seed, step).

The global batch does not depend on the number of workers, so a run that resumes on another topology sees the same data.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Batches:
    """Batches of `size` row numbers out of `rows`, reshuffled every epoch; an epoch's end may fall within a batch."""

    rows: int
    size: int
    seed: int

    def at(self, step: int) -> list[int]:
        """The global batch of a step, counted from 0."""
        first, end = step * self.size, (step + 1) * self.size
        epochs = range(first // self.rows, (end - 1) // self.rows + 1)
        stream = np.concatenate([self._epoch(epoch) for epoch in epochs])
        offset = first - epochs.start * self.rows
        return [int(row) for row in stream[offset : offset + self.size]]

    def _epoch(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(self.rows)


def deal(batch: list[int], costs: Sequence[float], workers: int, microbatches: int) -> list[list[list[int]]]:
    """Share a global batch out: [worker][microbatch] -> row numbers, equally many each, evenly by cost.

    costs: one number per entry of `batch`. Rows go out from the costliest down, each to the lightest hand that has room, so
    that the forward passes that all workers run side by side take alike. len(batch) must be a multiple of
    workers * microbatches.
    """
    hands: list[list[int]] = [[] for _ in range(workers * microbatches)]
    loads = [0.0] * len(hands)
    room = len(batch) // len(hands)
    for index in sorted(range(len(batch)), key=lambda i: (-costs[i], i)):
        lightest = min((h for h in range(len(hands)) if len(hands[h]) < room), key=lambda h: loads[h])
        hands[lightest].append(batch[index])
        loads[lightest] += costs[index]
    return [[hands[m * workers + w] for m in range(microbatches)] for w in range(workers)]
