"""The gate in front of the engines: which routes there are, how much may be asked, and what was.

An ASGI middleware in Ray Serve's proxy, inside the key guard and before any engine. Ray Serve's proxy loads it by name
(`guard_middlewares`), so this module imports nothing heavy at its top.
"""

import asyncio
import json
import os
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response

from cpo_ray.config import LimitsConfig
from cpo_ray.errors import ServiceError
from cpo_ray.serving.keys import DRAIN_ROUTE, App, KeyGuard, Receive, Scope, Send, read_digests
from cpo_ray.serving.requests import ROUTES, RequestRefusedError, read_request, write_request

SETTINGS_VARIABLE = "CPO_RAY_ENDPOINT_GATE"
BODY_TIMEOUT_S = 30.0  # for a request's body to arrive
RETRY_AFTER_S = 1  # when the queue is full
DRAIN_RETRY_AFTER_S = 10  # when the endpoint is about to end: another may take its place
CLIENT_GONE = 499  # nginx's number for a client that did not wait


@dataclass(frozen=True)
class GateSettings:
    """What the gate knows: each model's vocabulary and Serve deployment, the context in tokens, and the limits."""

    vocabularies: dict[str, int]
    deployments: dict[str, str]
    context: int
    limits: LimitsConfig

    def dump(self) -> str:
        """For the environment of Serve's proxy."""
        return json.dumps({**self.__dict__, "limits": self.limits.model_dump(mode="json")})

    @classmethod
    def load(cls, text: str) -> "GateSettings":
        """What `dump` wrote."""
        tree = json.loads(text)
        return cls(**{**tree, "limits": LimitsConfig.model_validate(tree["limits"])})


class Gate:
    """ASGI middleware. Answers /health, /ready, /metrics and the drain route itself, passes the routes of the API on."""

    def __init__(self, app: App, settings: GateSettings) -> None:
        self.app, self.settings = app, settings
        self.under_way = 0
        self.draining = False
        self.metrics = GateMetrics()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; websockets are not spoken here."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._meter(scope, receive, send)

    async def _meter(self, scope: Scope, receive: Receive, send: Send) -> None:
        entry = Entry(scope["path"] if scope["path"] in ROUTES else "other")

        async def note(message: Any) -> None:
            if message["type"] == "http.response.start":
                entry.status = message["status"]
            await send(message)

        try:
            await self._answer(scope, receive, note, entry)
        except RequestRefusedError as refusal:
            await refuse(refusal)(scope, receive, note)
        finally:
            self.metrics.note(entry)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, entry: "Entry") -> None:
        path, method = scope["path"], scope["method"]
        if path in ROUTES:
            _expect(method, "POST")
            await self._ask(scope, receive, send, entry)
        elif path == "/v1/models" or path.removeprefix("/v1/models/") in self.settings.vocabularies:
            _expect(method, "GET")
            await self.app(_plain_scope(scope, b""), receive, send)
        else:
            await (await self._own_answer(path, method))(scope, receive, send)

    async def _own_answer(self, path: str, method: str) -> Response:
        """The routes that no engine is needed for."""
        if path == DRAIN_ROUTE:
            _expect(method, "POST")
            self.draining = True
            return JSONResponse({"under_way": self.under_way})
        if path not in {"/health", "/ready", "/metrics"}:
            raise RequestRefusedError(404, "there is no such route")
        _expect(method, "GET")
        if path == "/metrics":
            return Response(self.metrics.render(self.under_way), media_type=CONTENT_TYPE_LATEST)
        if path == "/health":
            return JSONResponse({"status": "draining" if self.draining else "ok", "under_way": self.under_way})
        running = await asyncio.to_thread(count_replicas, self.settings.deployments)
        ready = all(running.values()) and not self.draining
        return JSONResponse({"ready": ready, "replicas": running}, status_code=200 if ready else 503)

    async def _ask(self, scope: Scope, receive: Receive, send: Send, entry: "Entry") -> None:
        settings = self.settings
        body = await _read_body(scope, receive, int(settings.limits.body_mib * 2**20))
        request = read_request(scope["path"], body, settings.limits, settings.vocabularies, settings.context)
        entry.model = request.model
        if self.draining:  # asked now, not when the body began to arrive
            raise RequestRefusedError(503, "this endpoint is about to end; it answers what it has begun")
        if self.under_way >= settings.limits.requests:
            raise RequestRefusedError(429, f"{self.under_way} requests are under way or waiting; try again later")
        checked = write_request(request)
        unread = [{"type": "http.request", "body": checked, "more_body": False}]

        async def replay() -> Any:
            return unread.pop() if unread else await receive()

        self.under_way += 1
        try:
            await self.app(_plain_scope(scope, checked), replay, send)
        finally:
            self.under_way -= 1


@dataclass
class Entry:
    """What the metrics keep of one request. `model` stays empty where none that is served was asked."""

    route: str
    model: str = ""
    status: int = CLIENT_GONE
    started: float = field(default_factory=time.monotonic)


class GateMetrics:
    """Counts for Prometheus. Labels are routes, models and statuses that exist: nobody can make new ones by asking."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "cpo_ray_requests", "Requests answered", ["route", "model", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "cpo_ray_request_seconds",
            "Time from a request's first line to its answer's last byte",
            ["route", "model"],
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
            registry=self.registry,
        )
        self.under_way = Gauge(
            "cpo_ray_requests_under_way", "Requests that engines work on or that wait", registry=self.registry
        )

    def note(self, entry: Entry) -> None:
        """Count one answer."""
        self.requests.labels(entry.route, entry.model, str(entry.status)).inc()
        if entry.model:
            self.seconds.labels(entry.route, entry.model).observe(time.monotonic() - entry.started)

    def render(self, under_way: int) -> bytes:
        """Prometheus' text format."""
        self.under_way.set(under_way)
        return generate_latest(self.registry)


def guard_middlewares() -> list[Middleware]:
    """What Ray Serve's proxy puts around itself, innermost first. Raises ServiceError where the environment lacks a part."""
    settings = os.environ.get(SETTINGS_VARIABLE, "")
    if not settings:
        raise ServiceError(f"{SETTINGS_VARIABLE} is not set: this proxy would serve without limits")
    expected, control = read_digests()
    return [
        Middleware(Gate, settings=GateSettings.load(settings)),
        Middleware(KeyGuard, expected=expected, control=control),
    ]


def refuse(refusal: RequestRefusedError) -> JSONResponse:
    """OpenAI's error object."""
    content = {"message": refusal.message, "type": "invalid_request_error", "param": refusal.param, "code": None}
    waits = {429: RETRY_AFTER_S, 503: DRAIN_RETRY_AFTER_S}
    headers = {"Retry-After": str(waits[refusal.status])} if refusal.status in waits else {}
    return JSONResponse({"error": content}, status_code=refusal.status, headers=headers)


def count_replicas(deployments: dict[str, str]) -> dict[str, int]:
    """Model name -> replicas that run now, as Ray Serve knows it; none where Serve cannot say. Called in its proxy; blocks."""
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException
    from ray.serve.schema import ReplicaState

    try:
        applications = serve.status().applications.values()
    except (RayError, RayServeException):  # its controller is being started anew
        return dict.fromkeys(deployments, 0)
    found = {name: deployment for application in applications for name, deployment in application.deployments.items()}
    return {
        model: found[name].replica_states.get(ReplicaState.RUNNING, 0) if name in found else 0
        for model, name in deployments.items()
    }


def _expect(method: str, expected: str) -> None:
    if method != expected:
        raise RequestRefusedError(405, f"this route takes {expected}")


async def _read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body. Raises RequestRefusedError: 413 beyond `limit` bytes, 408 where it does not come, 400 for a torn one."""
    too_large = RequestRefusedError(413, f"the body is larger than {limit} bytes")
    declared = dict(scope["headers"]).get(b"content-length", b"")
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise RequestRefusedError(400, "the client left before its request was whole")
                body += message.get("body", b"")
                if len(body) > limit:
                    raise too_large
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise RequestRefusedError(408, f"the body did not arrive within {BODY_TIMEOUT_S:.0f} s") from None


def _plain_scope(scope: Scope, body: bytes) -> Scope:
    """The request with headers of ours alone: the key goes no further, and no header steers Serve or an engine."""
    headers = [
        (b"host", b"endpoint"),
        (b"accept", b"*/*"),
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", uuid.uuid4().hex.encode()),
    ]
    return {**scope, "headers": headers, "query_string": b""}
