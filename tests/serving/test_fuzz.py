"""Two thousand odd requests to a real engine behind the real endpoint: no 5xx, and the engine still works."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from hypothesis import HealthCheck, given, settings

from cpo_ray.config import JudgeConfig, ServingConfig
from cpo_ray.evaluation.judge import judge_answers
from cpo_ray.evaluation.pairs import Pair
from cpo_ray.serving.app import Endpoint, serve_models
from tests.engines import engine_processes
from tests.serving.odd_bodies import requests

pytestmark = pytest.mark.e2e

MODEL, BODIES, AT_ONCE = "tiny", 2000, 24
CONFIG = ServingConfig.model_validate(
    {
        "start_timeout_s": 300,
        "engine": {"kv_cache_gib": 0.25, "max_sequences": 32},
        "limits": {"prompts": 4, "samples": 8, "tokens": 300, "body_mib": 0.25, "requests": 16},
    }
)
TEMPLATE = """{% for message in messages %}{% if message['role'] == 'developer' %}{{ raise_exception('no such role') }}\
{% endif %}{{ message['role'] }}: {{ message['content'] }}
{% endfor %}assistant:"""
PROMPTS = [[5, 6, 7], [300, 20, 41, 7], [900], list(range(50, 90))]


@pytest.fixture(scope="module")
def endpoint(cluster: Any, model: Path) -> Iterator[Endpoint]:
    (model / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    with serve_models({MODEL: model}, CONFIG, 256, 0) as up:
        yield up


def test_a_real_engine_answers_as_before_after_two_thousand_odd_bodies(endpoint: Endpoint) -> None:
    before, processes = greedy_answers(endpoint), replica_and_engine()
    seen, odd = asyncio.run(send_all(endpoint, draw_requests(BODIES)))
    assert odd == []
    assert seen.total() == BODIES
    assert seen[200] > 300
    assert seen[400] > 300
    assert replica_and_engine() == processes
    assert greedy_answers(endpoint) == before


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_a_served_model_can_be_the_judge(endpoint: Endpoint, tmp_path: Path, api: Literal["chat"]) -> None:
    config = JudgeConfig(url=endpoint.url, model=MODEL, api=api, max_invalid_fraction=1.0)
    pairs = [Pair(id=str(n), prompt=f"sort {n}", response="one two", reference="two") for n in range(3)]
    out = tmp_path / "verdicts.jsonl"
    summary = judge_answers(pairs, endpoint.url, endpoint.key, config, 17, out, lambda: None)
    assert (summary["n"], summary["judge"]) == (3, MODEL)
    answers = [answer for line in out.read_text().splitlines() for answer in json.loads(line)["answers"]]
    assert len(answers) == 6
    assert not any("refused the request" in answer for answer in answers)


def draw_requests(count: int) -> list[tuple[str, bytes]]:
    """The same requests in every run."""
    drawn: list[tuple[str, bytes]] = []

    @settings(max_examples=count, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
    @given(request=requests([MODEL]))
    def draw(request: tuple[str, bytes]) -> None:
        drawn.append(request)

    draw()
    return drawn[:count]


async def send_all(endpoint: Endpoint, drawn: list[tuple[str, bytes]]) -> tuple[Counter[int], list[Any]]:
    """Final statuses, and unexpected answers. A 429 is retried."""
    seen: Counter[int] = Counter()
    odd: list[Any] = []
    waiting = iter(drawn)
    headers = {"Authorization": f"Bearer {endpoint.key}", "Content-Type": "application/json"}

    async def worker(client: httpx.AsyncClient) -> None:
        for route, body in waiting:
            answer = await client.post(endpoint.root + route, content=body)
            while answer.status_code == 429:
                await asyncio.sleep(float(answer.headers["retry-after"]))
                answer = await client.post(endpoint.root + route, content=body)
            seen[answer.status_code] += 1
            refused = answer.status_code in {400, 404, 413} and answer.json()["error"]["message"]
            if not refused and not (answer.status_code == 200 and read_errors(answer.text) == []):
                odd.append((route, body[:2000], answer.status_code, answer.text))

    async with httpx.AsyncClient(headers=headers, timeout=120, trust_env=False) as client, asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(worker(client))
    return seen, odd


def read_errors(text: str) -> list[Any]:
    """Errors in an answer, or in a stream that started with a 200."""
    events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")] or [text]
    answers = [json.loads(event) for event in events if event != "[DONE]"]
    return [answer for answer in answers if "error" in answer or answer.get("object") == "error"]


def greedy_answers(endpoint: Endpoint) -> list[Any]:
    headers = {"Authorization": f"Bearer {endpoint.key}"}
    body = {"model": MODEL, "max_tokens": 24, "temperature": 0, "return_token_ids": True}
    answers = []
    with httpx.Client(headers=headers, timeout=60, trust_env=False) as client:
        for prompt in PROMPTS:
            (choice,) = client.post(f"{endpoint.url}/completions", json=body | {"prompt": prompt}).json()["choices"]
            answers.append((choice["text"], choice["token_ids"]))
    return answers


def replica_and_engine() -> set[tuple[int, float]]:
    """The replica and its vLLM process, by pid and start time."""
    (engine,) = engine_processes()
    return {(process.pid, process.create_time()) for process in (engine, engine.parent())}
