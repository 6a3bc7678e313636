"""Asking an OpenAI-compatible API many things at once: bounded, patient, resumable."""

import asyncio
import email.utils
import json
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Self, TypeVar

import httpx

from cpo_ray.errors import ConfigError, ServiceError

RETRIED = {408, 409, 425, 429}  # and every 5xx
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 60.0
LONGEST_RETRY_AFTER_S = 600.0

Item = TypeVar("Item")


class RefusedError(ServiceError):
    """An answer that trying again cannot cure (400, 401, 404, ...)."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def read_key(variable: str) -> str:
    """The API key in an environment variable, without the blanks around it; empty where there is none.

    Raises ConfigError, which does not show it, for a key that no HTTP header can carry.
    """
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"the key in the environment variable {variable} holds characters that an HTTP header cannot carry; use "
            "printable ASCII"
        )
    return key


class Client:
    """POSTs JSON with a key, trying again after 429, 5xx, timeouts and dropped connections. An async context manager.

    At most `requests_per_minute` leave, evenly spaced, tries after the first included; None sends as they come.
    """

    def __init__(
        self, url: str, key: str, retries: int, timeout_s: float = 600.0, requests_per_minute: float | None = None
    ) -> None:
        self.retries = retries
        self.gap_s = 60 / requests_per_minute if requests_per_minute else 0.0
        self.next_turn = 0.0
        self.url = url.rstrip("/")
        self.http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(timeout_s, connect=30.0),
            limits=httpx.Limits(max_connections=None),
            trust_env=False,  # a proxy from the environment would see the key
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON object answered to `body`.

        Raises ServiceError after 1 + `retries` tries, and at once RefusedError where trying again cannot help (401, 404, ...).
        """
        problem = ""
        for attempt in range(1 + self.retries):
            wanted = 0.0
            await self._turn()
            try:
                response = await self.http.post(f"{self.url}{path}", json=body)
                if response.is_success:
                    return _read_object(response.content)
                problem = f"HTTP {response.status_code}: {response.text[:300]}"
                if response.status_code not in RETRIED and not response.is_server_error:
                    raise RefusedError(f"{self.url}{path} refused the request: {problem}", response.status_code)
                wanted = retry_after(response.headers.get("retry-after", ""))
            except httpx.RequestError as error:
                problem = f"{type(error).__name__}: {error}"
            except _GarbageError as error:
                problem = str(error)
            if wanted > LONGEST_RETRY_AFTER_S:
                raise ServiceError(f"{self.url}{path} asks to wait {wanted:.0f} s ({problem}). Run again later.")
            if attempt < self.retries:
                await asyncio.sleep(wanted + jittered(attempt))
        raise ServiceError(f"{self.url}{path} failed {1 + self.retries} times; the last: {problem}")

    async def _turn(self) -> None:
        """Wait until the rate allows one more request."""
        if self.gap_s:
            now = time.monotonic()
            mine = max(now, self.next_turn)
            self.next_turn = mine + self.gap_s
            await asyncio.sleep(mine - now)


class _GarbageError(Exception):
    """A 200 that answers no JSON object."""


def _read_object(content: bytes) -> dict[str, Any]:
    """The JSON object, each half of a UTF-16 pair that stands alone in it replaced by `?`: no file could hold it."""
    try:
        answer = json.loads(content)
        answer = json.loads(json.dumps(answer, ensure_ascii=False).encode(errors="replace"))
    except (ValueError, RecursionError) as error:
        raise _GarbageError(f"the answer is not JSON: {error}") from None
    if not isinstance(answer, dict):
        raise _GarbageError(f"answered {type(answer).__name__}, not an object")
    return answer


def jittered(attempt: int) -> float:
    """Seconds to wait after try `attempt` (from 0): doubling, capped, and spread so that clients do not return together."""
    return random.uniform(0.5, 1.0) * min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt)


def retry_after(header: str) -> float:
    """Seconds that a Retry-After header asks for, given as seconds or as a date; 0 where it says nothing usable."""
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return 0.0


def run_bounded(items: Iterable[Item], concurrency: int, work: Callable[[Item], Awaitable[None]]) -> Awaitable[None]:
    """`await work(item)` for every item, at most `concurrency` at once. The first error ends the others and is raised."""

    async def run() -> None:
        queue = iter(items)

        async def worker() -> None:
            for item in queue:
                await work(item)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(worker())
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    return run()
