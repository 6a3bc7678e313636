"""Whose time it was, where several units are under way in one actor."""

import contextlib
import time
from collections.abc import Callable, Iterator


class Shares:
    """Each moment's time belongs in equal parts to the units that are under way: their sum is the time the actor worked."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.under_way = 0
        self.told = clock()
        self.each = 0.0  # s that a unit would have that had been under way from the beginning

    @contextlib.contextmanager
    def unit(self) -> Iterator[Callable[[], float]]:
        """A unit is under way. What this gives tells its share so far, in seconds."""
        self._tell()
        self.under_way += 1
        began = self.each

        def share() -> float:
            self._tell()
            return self.each - began

        try:
            yield share
        finally:
            self._tell()
            self.under_way -= 1

    def _tell(self) -> None:
        now = self.clock()
        if self.under_way:
            self.each += (now - self.told) / self.under_way
        self.told = now
