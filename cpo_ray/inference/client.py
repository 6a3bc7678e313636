"""A client for OpenAI-compatible APIs: retries, rate limit, bounded concurrency."""

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
QUOTED = 300  # characters of an answer in an error message

Item = TypeVar("Item")


class RefusedError(ServiceError):
    """The API refused a request with a status that a retry cannot change (400, 401, 404, ...)."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class InvalidAnswerError(Exception):
    """A 200 whose body is not what was asked for. `Client.post` sends the request again, and names the last one at the end."""


class NoTextError(InvalidAnswerError):
    """The model used up its tokens before any text, as models that think can."""


class EmptyAnswerError(ServiceError):
    """The last attempt ended in NoTextError. Other requests to the same API may well succeed."""


def read_key(variable: str) -> str:
    """Read the API key from an environment variable, stripped of white space; empty if it is not set.

    Raises ConfigError, without showing the key, if an HTTP header cannot carry it.
    """
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"the key in the environment variable {variable} holds characters that an HTTP header cannot carry; use "
            "printable ASCII"
        )
    return key


class Client:
    """POST JSON with a key; retry after 429, 5xx, timeouts and dropped connections. An async context manager.

    At most `requests_per_minute` requests are sent, evenly spaced and retries included; None means no limit.
    """

    def __init__(
        self, url: str, key: str, retries: int, timeout_s: float = 600.0, requests_per_minute: float | None = None
    ) -> None:
        self.retries = retries
        self.gap_s = 60 / requests_per_minute if requests_per_minute else 0.0
        self.next_start = 0.0
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

    async def post(
        self, path: str, body: dict[str, Any], check: Callable[[dict[str, Any]], None] | None = None
    ) -> dict[str, Any]:
        """Send `body`, return the JSON object of the answer. `check` raises InvalidAnswerError for one that is not usable.

        Raises ServiceError after 1 + `retries` attempts (EmptyAnswerError if the last was NoTextError), and RefusedError
        without a retry if the status is final (401, ...).
        """
        problem, failure = "", ServiceError
        for attempt in range(1 + self.retries):
            delay, failure = 0.0, ServiceError
            await self._wait_for_rate_limit()
            try:
                response = await self.http.post(f"{self.url}{path}", json=body)
                if response.is_success:
                    answer = _read_object(response.content)
                    if check is not None:
                        check(answer)
                    return answer
                problem = f"HTTP {response.status_code}: {response.text[:QUOTED]}"
                if response.status_code not in RETRIED and not response.is_server_error:
                    raise RefusedError(f"{self.url}{path} refused the request: {problem}", response.status_code)
                delay = retry_after(response.headers.get("retry-after", ""))
            except httpx.RequestError as error:
                problem = f"{type(error).__name__}: {error}"
            except InvalidAnswerError as error:
                problem = str(error)
                failure = EmptyAnswerError if isinstance(error, NoTextError) else ServiceError
            if delay > LONGEST_RETRY_AFTER_S:
                raise ServiceError(
                    f"{self.url}{path} asks to wait {delay:.0f} s ({problem}). Run the same command later."
                )
            if attempt < self.retries:
                await asyncio.sleep(delay + jittered(attempt))
        model = f" for the model {body['model']!r}" if "model" in body else ""
        raise failure(f"{self.url}{path}{model} failed {1 + self.retries} times; the last: {problem}")

    async def _wait_for_rate_limit(self) -> None:
        """Wait until the rate limit allows one more request."""
        if self.gap_s:
            now = time.monotonic()
            start = max(now, self.next_start)
            self.next_start = start + self.gap_s
            await asyncio.sleep(start - now)


def require_choice(answer: dict[str, Any]) -> None:
    """Check for `Client.post`: a completion or chat completion whose first choice holds an answer, possibly an empty one.

    Some APIs report a failure with status 200: an error object, no choices, or a choice that is an error. Raises
    InvalidAnswerError with the answer, and NoTextError if the tokens ended before the first text of a message.
    """
    choices = answer.get("choices")
    choice: Any = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict) or choice.get("error") or choice.get("finish_reason") == "error":
        raise InvalidAnswerError(f"the answer has no choice: {str(answer)[:QUOTED]}")
    message = choice.get("message")
    if not isinstance(message, dict) and not isinstance(choice.get("text"), str):
        raise InvalidAnswerError(f"the answer's choice has no message and no text: {str(answer)[:QUOTED]}")
    if isinstance(message, dict) and not message.get("content") and choice.get("finish_reason") == "length":
        raise NoTextError(f"the answer has no text (finish_reason: length): {str(answer)[:QUOTED]}")


def _read_object(content: bytes) -> dict[str, Any]:
    """Parse a JSON object. Lone UTF-16 surrogates become `?`, because they cannot be written as UTF-8."""
    try:
        answer = json.loads(content)
        answer = json.loads(json.dumps(answer, ensure_ascii=False).encode(errors="replace"))
    except (ValueError, RecursionError) as error:
        raise InvalidAnswerError(f"the answer is not JSON: {error}") from None
    if not isinstance(answer, dict):
        raise InvalidAnswerError(f"the answer is a JSON {type(answer).__name__}, not an object")
    return answer


def jittered(attempt: int) -> float:
    """Seconds to wait after attempt `attempt` (from 0): doubling, capped, with jitter so that clients do not retry together."""
    return random.uniform(0.5, 1.0) * min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt)


def retry_after(header: str) -> float:
    """Seconds of a Retry-After header, which holds seconds or a date; 0 if it cannot be parsed."""
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return 0.0


def run_bounded(items: Iterable[Item], concurrency: int, work: Callable[[Item], Awaitable[None]]) -> Awaitable[None]:
    """`await work(item)` for every item, at most `concurrency` at once. The first error cancels the others and is raised."""

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
