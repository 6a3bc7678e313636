"""Turns at one engine: requests for one model run together, those for another wait until the weights are changed."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable


class Turns:
    """First come, first served, in groups: all that wait for the model that is next in line enter with the first of them.

    `switch(model)` is awaited while nobody is inside. Where it fails, everybody who asks from then on gets its error: what
    the engine now holds is unknown.
    """

    def __init__(self, shown: str, switch: Callable[[str], Awaitable[None]]) -> None:
        self.shown, self.switch = shown, switch
        self.inside = 0
        self.waiting: deque[tuple[str, asyncio.Future[None]]] = deque()
        self.broken: Exception | None = None
        self.switching: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def turn(self, model: str) -> AsyncIterator[None]:
        """Hold the engine with the weights of `model` in it."""
        await self._enter(model)
        try:
            yield
        finally:
            self._leave()

    async def _enter(self, model: str) -> None:
        if self.broken is not None:
            raise self.broken
        if model == self.shown and not self.waiting and self.switching is None:
            self.inside += 1
            return
        admitted = asyncio.get_running_loop().create_future()
        self.waiting.append((model, admitted))
        self._change()
        try:
            await admitted
        except asyncio.CancelledError:
            if admitted.done() and not admitted.cancelled() and admitted.exception() is None:
                self._leave()  # it was let in just as it gave up
            raise

    def _leave(self) -> None:
        self.inside -= 1
        self._change()

    def _change(self) -> None:
        """Begin the next turn if the engine is free and somebody waits."""
        while self.waiting and self.waiting[0][1].done():
            self.waiting.popleft()  # gave up
        if self.inside == 0 and self.waiting and self.switching is None:
            self.switching = asyncio.create_task(self._begin(self.waiting[0][0]))

    async def _begin(self, model: str) -> None:
        try:
            if model != self.shown:
                await self.switch(model)
                self.shown = model
        except Exception as error:
            self.broken = error
            for _, admitted in self.waiting:
                if not admitted.done():
                    admitted.set_exception(error)
            self.waiting.clear()
            raise
        finally:
            self.switching = None
        remaining = [(name, admitted) for name, admitted in self.waiting if not admitted.done()]
        self.waiting = deque(entry for entry in remaining if entry[0] != model)
        for name, admitted in remaining:
            if name == model:
                self.inside += 1
                admitted.set_result(None)
        self._change()
