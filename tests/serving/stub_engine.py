"""A gateway in front of an engine that records what it is asked."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cpo_ray.config import LimitsConfig
from cpo_ray.serving.auth import KeyMiddleware, digest
from cpo_ray.serving.gateway import Gateway, GatewaySettings

KEY, CONTROL = {"Authorization": "Bearer key"}, {"Authorization": "Bearer control"}
LIMITS = LimitsConfig(body_mib=0.01, prompts=4, samples=8, tokens=2000, requests=3)
SETTINGS = GatewaySettings({"a": 1000, "b": 500}, {"a": "LLMServer:a", "b": "LLMServer:b"}, 256, LIMITS)
ASK = {"model": "a", "prompt": "hello", "max_tokens": 4}


class StubEngine:
    """An engine behind the gateway: records each request, and answers once `open` is set."""

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.arrived = asyncio.Semaphore(0)
        routes = [
            Route("/v1/completions", self.answer, methods=["POST"]),
            Route("/v1/chat/completions", self.answer, methods=["POST"]),
            Route("/v1/models", lambda _: JSONResponse({"data": []})),
            Route("/docs", lambda _: JSONResponse({})),
        ]
        self.app = Starlette(routes=routes)

    async def answer(self, request: Request) -> Response:
        self.headers.append(dict(request.headers))
        self.bodies.append(json.loads(await request.body()))
        self.arrived.release()
        await self.open.wait()
        return JSONResponse({"choices": []})


def ask(work: Callable[[httpx.AsyncClient, StubEngine], Any], limits: GatewaySettings = SETTINGS) -> Any:
    """Run `work` against the key check and the gateway in front of a stub engine."""

    async def run() -> Any:
        engine = StubEngine()
        app = KeyMiddleware(Gateway(engine.app, limits), digest("key"), digest("control"))
        transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint", headers=KEY) as client:
            return await work(client, engine)

    return asyncio.run(run())


def post(body: Any, route: str = "/v1/completions", **options: Any) -> tuple[httpx.Response, StubEngine]:
    async def work(client: httpx.AsyncClient, engine: StubEngine) -> Any:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await client.post(route, content=content, **options), engine

    return ask(work)  # type: ignore[no-any-return]
