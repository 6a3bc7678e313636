"""Several models in one engine: requests for one model run together, others wait until their model's weights are loaded."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable


class WeightSwitcher:
    """First come, first served, by model: all requests waiting for the model that is next in line are admitted together.

    `switch(model)` is awaited while no request is running. If it raises, the engine's weights are unknown, so every
    waiting and later request gets the same error.
    """

    def __init__(self, loaded: str, switch: Callable[[str], Awaitable[None]]) -> None:
        self.loaded, self.switch = loaded, switch
        self.running = 0
        self.waiting: deque[tuple[str, asyncio.Future[None]]] = deque()
        self.failure: Exception | None = None
        self.switching: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def using(self, model: str) -> AsyncIterator[None]:
        """Run the block while the weights of `model` are loaded."""
        await self._enter(model)
        try:
            yield
        finally:
            self._leave()

    async def _enter(self, model: str) -> None:
        if self.failure is not None:
            raise self.failure
        if model == self.loaded and not self.waiting and self.switching is None:
            self.running += 1
            return
        admitted = asyncio.get_running_loop().create_future()
        self.waiting.append((model, admitted))
        self._start_switch()
        try:
            await admitted
        except asyncio.CancelledError:
            if admitted.done() and not admitted.cancelled() and admitted.exception() is None:
                self._leave()  # admitted and cancelled at the same time
            raise

    def _leave(self) -> None:
        self.running -= 1
        self._start_switch()

    def _start_switch(self) -> None:
        """Switch to the next model if the engine is idle and a request waits."""
        while self.waiting and self.waiting[0][1].done():
            self.waiting.popleft()  # cancelled
        if self.running == 0 and self.waiting and self.switching is None:
            self.switching = asyncio.create_task(self._switch_and_admit(self.waiting[0][0]))

    async def _switch_and_admit(self, model: str) -> None:
        try:
            if model != self.loaded:
                await self.switch(model)
                self.loaded = model
        except Exception as error:
            self.failure = error
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
                self.running += 1
                admitted.set_result(None)
        self._start_switch()
