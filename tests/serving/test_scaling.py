"""Engines scale up and down with the load, and no request is lost."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from cpo_ray.config import ServingConfig
from cpo_ray.serving.app import Endpoint, serve_models

TIMEOUT_S = 300  # timeout of each event; nothing is measured
CONFIG = ServingConfig.model_validate(
    {
        "start_timeout_s": TIMEOUT_S,
        "engine": {"kv_cache_gib": 0.25, "max_sequences": 16},
        "min_replicas": 1,
        "max_replicas": 2,
        "requests_per_replica": 2,
        "scale_up_after_s": 1,
        "scale_down_after_s": 1,
    }
)
PROMPTS = [[5, 6, 7], [300, 20, 41, 7], [900], list(range(50, 90))]


@pytest.mark.chaos
def test_engines_scale_with_the_load_and_no_request_is_lost(cluster: Any, model: Path) -> None:
    with serve_models({"tiny": model}, CONFIG, 256, 0) as endpoint:
        expected = [ask(endpoint, prompt) for prompt in PROMPTS]
        assert count_engines(endpoint) == 1
        with asking(endpoint, 6, expected) as many:
            many.wait_for(lambda: count_engines(endpoint) == 2)
            many.wait_for(lambda: many.answered > 0)
        with asking(endpoint, 2, expected) as few:  # probably one per engine
            few.wait_for(lambda: count_engines(endpoint) == 1)
            seen = few.answered
            few.wait_for(lambda: few.answered > seen + 4)


def ask(endpoint: Endpoint, prompt: list[int]) -> list[int]:
    """The tokens of a long greedy answer, without retries."""
    headers = {"Authorization": f"Bearer {endpoint.key}"}
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 200, "temperature": 0, "ignore_eos": True}
    answer = httpx.post(
        f"{endpoint.url}/completions",
        json=body | {"return_token_ids": True},
        headers=headers,
        timeout=TIMEOUT_S,
        trust_env=False,
    )
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["token_ids"]  # type: ignore[no-any-return]


class Load:
    """Workers that send requests until stopped. Every answer must be the expected one."""

    def __init__(self, endpoint: Endpoint, expected: list[list[int]]) -> None:
        self.endpoint, self.expected = endpoint, expected
        self.stop, self.answered = threading.Event(), 0
        self.workers: list[Future[None]] = []

    def work(self, number: int) -> None:
        while not self.stop.is_set():
            index = number % len(PROMPTS)
            assert ask(self.endpoint, PROMPTS[index]) == self.expected[index]
            self.answered += 1
            number += 1

    def wait_for(self, event: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not event():
            assert time.monotonic() < deadline
            assert not any(worker.done() for worker in self.workers), "a request was lost"
            time.sleep(0.2)


@contextlib.contextmanager
def asking(endpoint: Endpoint, at_once: int, expected: list[list[int]]) -> Iterator[Load]:
    """Keep `at_once` requests running until the block ends, then wait for the last answers."""
    load = Load(endpoint, expected)
    with ThreadPoolExecutor(at_once) as threads:
        load.workers = [threads.submit(load.work, number) for number in range(at_once)]
        try:
            yield load
        finally:
            load.stop.set()
            for worker in load.workers:
                worker.result()


def count_engines(endpoint: Endpoint) -> int:
    answer = httpx.get(f"{endpoint.root}/ready", headers={"Authorization": f"Bearer {endpoint.key}"}, trust_env=False)
    return int(answer.json()["replicas"]["tiny"])
