import asyncio
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings

from cpo_ray.errors import ServiceError
from cpo_ray.serving.auth import CONTROL_DIGEST_VARIABLE, DIGEST_VARIABLE, DRAIN_ROUTE, KeyMiddleware, digest
from cpo_ray.serving.gateway import SETTINGS_VARIABLE, Gateway, GatewaySettings, guard_middlewares
from tests.serving.odd_bodies import FIELDS, requests
from tests.serving.stub_engine import ASK, CONTROL, KEY, LIMITS, SETTINGS, StubEngine, ask, post


def test_the_engine_gets_the_validated_request_without_the_key() -> None:
    answer, engine = post(b'{"model": "b", "prompt": [1], "max_tokens": null, "model": "a"}', headers={"x-evil": "1"})
    assert answer.status_code == 200
    assert engine.bodies == [{"model": "a", "prompt": [1]}]
    assert set(engine.headers[0]) == {"host", "accept", "content-type", "content-length", "x-request-id"}
    chat = {"model": "a", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "temperature": 0}
    assert post(chat, "/v1/chat/completions")[1].bodies == [chat]


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"n": 9, "max_tokens": 1}, 400, "n"),
        ({"n": 10**30}, 400, "n"),
        ({"n": 0}, 400, "n"),
        ({"prompt": ["x"] * 5}, 400, "prompt"),
        ({"prompt": []}, 400, None),
        ({"prompt": ""}, 400, None),
        ({"prompt": ["x", ""], "stream": True}, 400, None),
        ({"prompt": [[]]}, 400, None),
        ({"prompt": [1000]}, 400, "prompt"),
        ({"prompt": [[1], [-1]]}, 400, None),
        ({"prompt": ["x"] * 4, "n": 8, "max_tokens": 100}, 400, "max_tokens"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": "5"}, 400, "max_tokens"),
        ({"temperature": float("nan")}, 400, None),
        ({"temperature": float("inf")}, 400, None),
        ({"temperature": -1}, 400, "temperature"),
        ({"temperature": 0, "n": 2}, 400, None),
        ({"model": "c"}, 404, "model"),
        ({"model": None}, 400, "model"),
        ({"stop_token_ids": [1000]}, 400, "prompt"),
        ({"logit_bias": {"1000": 1}}, 400, "prompt"),
        ({"logit_bias": {"x": 1}}, 400, None),
        ({"logit_bias": {"²": 1}}, 400, None),
        ({"prompt_embeds": "AAAA"}, 400, "prompt_embeds"),
        ({"structured_outputs": {"regex": "(a+)+$"}}, 400, "structured_outputs"),
        ({"trust_remote_code": True}, 400, "trust_remote_code"),
        ({"stream_options": {"include_usage": True}}, 400, None),
    ],
)
def test_a_value_out_of_bounds_is_refused_before_the_engine(change: Any, status: int, param: str | None) -> None:
    answer, engine = post(ASK | change)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert param is None or error["param"] == param
    assert error["message"]
    assert engine.bodies == []


def test_a_rule_against_repeated_ngrams_needs_engines_that_have_it() -> None:
    body = {**ASK, "no_repeat_ngram_size": 3}
    answer, engine = post(body)
    assert (answer.status_code, answer.json()["error"]["param"], engine.bodies) == (400, "no_repeat_ngram_size", [])

    async def work(client: httpx.AsyncClient, engine: StubEngine) -> list[Any]:
        assert (await client.post("/v1/completions", json=body)).status_code == 200
        beams = await client.post("/v1/completions", json={**body, "use_beam_search": True})
        assert (beams.status_code, "cannot be combined" in beams.text) == (400, True)
        return engine.bodies

    assert ask(work, replace(SETTINGS, no_repeat_ngram=True)) == [{**ASK, "vllm_xargs": {"no_repeat_ngram_size": 3}}]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"\xff", b'"x"', b"[" * 5000, b'{"model": "\\ud800"}', b"\x00"]
)
def test_a_body_that_is_not_a_request_is_refused(body: bytes) -> None:
    answer, engine = post(body)
    assert answer.status_code == 400
    assert engine.bodies == []


def test_a_large_body_is_refused_with_and_without_content_length() -> None:
    large = json.dumps(ASK | {"prompt": "x" * 20_000}).encode()
    assert post(large)[0].status_code == 413

    async def in_pieces() -> Any:
        for start in range(0, len(large), 100):
            yield large[start : start + 100]

    async def work(client: httpx.AsyncClient, engine: StubEngine) -> Any:
        return (await client.post("/v1/completions", content=in_pieces())).status_code, engine.bodies

    assert ask(work) == (413, [])


def test_only_the_routes_of_the_api_exist() -> None:
    async def work(client: httpx.AsyncClient, engine: StubEngine) -> Any:
        calls = [
            ("GET", "/v1/models"), ("GET", "/docs"), ("GET", "/"), ("POST", "/v1/embeddings"), ("GET", "/v1/completions"),
            ("POST", "/health"), ("GET", "/v1/models/c"), ("POST", "/tokenize"), ("GET", "/-/routes"), ("GET", "/health"),
        ]  # fmt: skip
        return [(await client.request(method, path)).status_code for method, path in calls]

    assert ask(work) == [200, 404, 404, 404, 405, 405, 404, 404, 404, 200]


def test_a_full_queue_is_429_with_retry_after_until_requests_finish() -> None:
    async def work(client: httpx.AsyncClient, engine: StubEngine) -> Any:
        engine.open.clear()
        waiting = [asyncio.create_task(client.post("/v1/completions", json=ASK)) for _ in range(LIMITS.requests)]
        for _ in waiting:
            await engine.arrived.acquire()
        refused = await client.post("/v1/completions", json=ASK)
        health = (await client.get("/health")).json()
        engine.open.set()
        answers = [(await task).status_code for task in waiting]
        return refused, health, answers, (await client.post("/v1/completions", json=ASK)).status_code

    refused, health, answers, later = ask(work)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert health == {"status": "ok", "under_way": LIMITS.requests}
    assert answers == [200] * LIMITS.requests
    assert later == 200


def test_a_client_that_disconnects_frees_its_place() -> None:
    async def work(client: httpx.AsyncClient, engine: StubEngine) -> Any:
        engine.open.clear()
        waiting = asyncio.create_task(client.post("/v1/completions", json=ASK))
        await engine.arrived.acquire()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        return (await client.get("/health")).json()["under_way"]

    assert ask(work) == 0


def test_draining_has_its_own_key_refuses_new_requests_and_finishes_running_ones() -> None:
    async def work(client: httpx.AsyncClient, engine: StubEngine) -> Any:
        engine.open.clear()
        last = asyncio.create_task(client.post("/v1/completions", json=ASK))
        await engine.arrived.acquire()
        assert (await client.post(DRAIN_ROUTE)).status_code == 401
        assert (await client.get("/health", headers=CONTROL)).status_code == 401
        assert (await client.post(DRAIN_ROUTE, headers=CONTROL)).json() == {"under_way": 1}
        refused = await client.post("/v1/completions", json=ASK)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
        assert (await client.get("/health")).json()["status"] == "draining"
        engine.open.set()
        assert (await last).status_code == 200
        return (await client.post(DRAIN_ROUTE, headers=CONTROL)).json()

    assert ask(work) == {"under_way": 0}


def test_a_request_whose_body_arrives_after_draining_is_refused() -> None:
    async def work(client: httpx.AsyncClient, engine: StubEngine) -> Any:
        begun, drained = asyncio.Event(), asyncio.Event()

        async def late() -> Any:
            begun.set()
            yield b'{"model": "a", '
            await drained.wait()
            yield b'"prompt": "hello"}'

        slow = asyncio.create_task(client.post("/v1/completions", content=late()))
        await begun.wait()
        assert (await client.post(DRAIN_ROUTE, headers=CONTROL)).json() == {"under_way": 0}
        drained.set()
        return (await slow).status_code, engine.bodies

    assert ask(work) == (503, [])


def test_readiness_needs_a_replica_of_every_model(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(client: httpx.AsyncClient, engine: StubEngine) -> Any:
        answer = await client.get("/ready")
        return answer.status_code, answer.json()

    for running, status in (({"a": 1, "b": 0}, 503), ({"a": 1, "b": 2}, 200)):
        monkeypatch.setattr("cpo_ray.serving.gateway.count_replicas", lambda _, running=running: running)
        assert ask(work) == (status, {"ready": status == 200, "replicas": running})


def test_metrics_count_answers_by_route_model_and_status() -> None:
    async def work(client: httpx.AsyncClient, engine: StubEngine) -> Any:
        await client.post("/v1/completions", json=ASK)
        await client.post("/v1/completions", json=ASK | {"model": "somebody's"})
        await client.get("/somewhere")
        return (await client.get("/metrics")).text

    lines = ask(work).splitlines()
    assert 'cpo_ray_requests_total{model="a",route="/v1/completions",status="200"} 1.0' in lines
    assert 'cpo_ray_requests_total{model="",route="/v1/completions",status="404"} 1.0' in lines
    assert 'cpo_ray_requests_total{model="",route="other",status="404"} 1.0' in lines
    assert 'cpo_ray_request_seconds_count{model="a",route="/v1/completions"} 1.0' in lines
    assert not any("somebody" in line or "somewhere" in line for line in lines)


def test_the_proxy_does_not_start_without_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (SETTINGS_VARIABLE, DIGEST_VARIABLE, CONTROL_DIGEST_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ServiceError, match="without limits"):
        guard_middlewares()
    monkeypatch.setenv(SETTINGS_VARIABLE, SETTINGS.dump())
    with pytest.raises(ServiceError, match="without a key"):
        guard_middlewares()
    monkeypatch.setenv(DIGEST_VARIABLE, "the key itself")
    with pytest.raises(ServiceError, match="is not a SHA-256") as raised:
        guard_middlewares()
    assert "itself" not in str(raised.value)
    monkeypatch.setenv(DIGEST_VARIABLE, f"{digest('key')}  -")  # the output of sha256sum
    assert guard_middlewares()[1].kwargs == {"expected": digest("key"), "control": ""}
    monkeypatch.setenv(CONTROL_DIGEST_VARIABLE, digest("control"))
    inner, outer = guard_middlewares()
    assert (inner.cls, inner.kwargs["settings"], outer.cls) == (Gateway, SETTINGS, KeyMiddleware)


def test_without_a_control_key_nobody_can_drain() -> None:
    async def work() -> list[int]:
        app = KeyMiddleware(Gateway(StubEngine().app, SETTINGS), digest("key"))
        transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
            keys = ({}, KEY, {"Authorization": "Bearer "}, {"Authorization": ""})
            return [(await client.post(DRAIN_ROUTE, headers=headers)).status_code for headers in keys]

    assert asyncio.run(work()) == [401] * 4


def test_settings_can_name_the_models_directories(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"vocab_size": 77, "max_position_embeddings": 128}')
    models = {"models": {"cpo": str(tmp_path), "org/mle.1": str(tmp_path)}}
    settings = GatewaySettings.load(json.dumps(models | {"limits": {"samples": 2}}))
    assert settings.vocabularies == {"cpo": 77, "org/mle.1": 77}
    assert settings.deployments == {"cpo": "LLMServer:cpo", "org/mle.1": "LLMServer:org--mle_1"}
    assert (settings.context, settings.limits.samples) == (128, 2)
    assert GatewaySettings.load(json.dumps(models | {"context": 64})).context == 64


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"models": 3}', '{"models": {}}', '{"models": {"a": "/none"}}',
                                  '{"vocabularies": {"a": 3}}'])  # fmt: skip
def test_settings_that_cannot_be_used_are_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(SETTINGS_VARIABLE, text)
    monkeypatch.setenv(DIGEST_VARIABLE, digest("key"))
    with pytest.raises(ServiceError, match=SETTINGS_VARIABLE):
        guard_middlewares()


@pytest.mark.e2e
def test_two_thousand_odd_bodies_cause_no_500_and_accepted_ones_are_within_bounds() -> None:
    seen: Counter[int] = Counter()
    engine = StubEngine()
    app = KeyMiddleware(Gateway(engine.app, SETTINGS), digest("key"), digest("control"))
    client = httpx.AsyncClient(
        transport=httpx.ASGITransport(app),  # type: ignore[arg-type]
        base_url="http://endpoint",
        headers=KEY,
    )

    @settings(max_examples=2000, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
    @given(request=requests(["a", "b"]))
    def check_one(request: tuple[str, bytes]) -> None:
        route, body = request
        engine.bodies.clear()
        answer = runner.run(client.post(route, content=body))
        seen[answer.status_code] += 1
        assert answer.status_code in {200, 400, 404, 413}
        assert len(engine.bodies) == (answer.status_code == 200)
        for passed in engine.bodies:
            assert passed["model"] in SETTINGS.vocabularies
            assert 1 <= passed.get("n", 1) <= LIMITS.samples
            assert passed.keys() <= FIELDS
        if answer.status_code != 200:
            assert answer.json()["error"]["message"]

    with asyncio.Runner() as runner:
        check_one()
    assert seen.total() >= 2000
    assert seen[200] > 150
    assert seen[400] > 500
