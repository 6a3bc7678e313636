"""Shares the time of one actor between the units that it processes at once."""

import contextlib
import time
from collections.abc import Callable, Iterator


class TimeShares:
    """Splits time equally between the units in progress, so that the shares add up to the time the actor was busy."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.in_progress = 0
        self.updated = clock()
        self.accumulated = 0.0  # s of a unit that has been in progress from the beginning

    @contextlib.contextmanager
    def unit(self) -> Iterator[Callable[[], float]]:
        """Marks a unit as in progress. Yields a function that returns the unit's share so far, in seconds."""
        self._update()
        self.in_progress += 1
        start = self.accumulated

        def share() -> float:
            self._update()
            return self.accumulated - start

        try:
            yield share
        finally:
            self._update()
            self.in_progress -= 1

    def _update(self) -> None:
        now = self.clock()
        if self.in_progress:
            self.accumulated += (now - self.updated) / self.in_progress
        self.updated = now
