"""The gateway in front of the engines: routes, request limits, draining, and metrics.

An ASGI middleware in Ray Serve's proxy, behind the key check and before any engine. The proxy loads it by dotted name
(`guard_middlewares`), so this module imports nothing heavy at the top.
"""

import asyncio
import json
import os
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response

from cpo_ray.config import LimitsConfig
from cpo_ray.errors import ServiceError
from cpo_ray.serving.auth import DRAIN_ROUTE, App, KeyMiddleware, Receive, Scope, Send, read_digests
from cpo_ray.serving.deployments import deployment_of, read_context, read_vocabulary
from cpo_ray.serving.requests import ROUTES, RequestRefusedError, read_request, write_request

SETTINGS_VARIABLE = "CPO_RAY_ENDPOINT_GATE"
BODY_TIMEOUT_S = 30.0  # for a request's body to arrive completely
RETRY_AFTER_S = 1  # if the queue is full
DRAIN_RETRY_AFTER_S = 10  # if the endpoint is shutting down: another may replace it
CLIENT_GONE = 499  # nginx's status for a client that disconnected


@dataclass(frozen=True)
class GatewaySettings:
    """Each model's vocabulary size and Serve deployment, the context length in tokens, the limits, and whether the engines
    have what `no_repeat_ngram_size` needs.
    """

    vocabularies: dict[str, int]
    deployments: dict[str, str]
    context: int
    limits: LimitsConfig
    no_repeat_ngram: bool = False

    def dump(self) -> str:
        """As JSON, for the environment of Serve's proxy."""
        return json.dumps({**self.__dict__, "limits": self.limits.model_dump(mode="json")})

    @classmethod
    def load(cls, text: str) -> "GatewaySettings":
        """Read what `dump` wrote, or `{"models": {NAME: DIRECTORY, ...}}`, as in kuberay/service.yaml.

        The latter may have "context" (default: the models' shortest) and "limits" (default: those of the configuration).
        Raises ServiceError for anything else.
        """
        try:
            tree = json.loads(text)
            limits = LimitsConfig.model_validate(tree.pop("limits", {}))
            return cls._of_models(**tree, limits=limits) if "models" in tree else cls(**tree, limits=limits)
        except (ValueError, TypeError, AttributeError, ServiceError) as error:
            raise ServiceError(f"{SETTINGS_VARIABLE} does not hold the gateway's settings: {error}") from None

    @classmethod
    def _of_models(cls, models: dict[str, str], limits: LimitsConfig, context: int | None = None) -> "GatewaySettings":
        """Settings for models that Ray's own application serves, from their directories."""
        if not models:
            raise ValueError("it names no model")
        folders = {name: Path(folder) for name, folder in models.items()}
        vocabularies = {name: read_vocabulary(folder) for name, folder in folders.items()}
        deployments = {name: deployment_of(name) for name in models}
        return cls(vocabularies, deployments, context or min(map(read_context, folders.values())), limits)


class Gateway:
    """ASGI middleware. Answers /health, /ready, /metrics and the drain route; checks API requests and passes them on."""

    def __init__(self, app: App, settings: GatewaySettings) -> None:
        self.app, self.settings = app, settings
        self.under_way = 0
        self.draining = False
        self.metrics = GatewayMetrics()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; websockets are not supported and closed."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._record(scope, receive, send)

    async def _record(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = RequestRecord(scope["path"] if scope["path"] in ROUTES else "other")

        async def send_and_record(message: Any) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
            await send(message)

        try:
            await self._answer(scope, receive, send_and_record, record)
        except RequestRefusedError as refusal:
            await refuse(refusal)(scope, receive, send_and_record)
        finally:
            self.metrics.count(record)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, record: "RequestRecord") -> None:
        path, method = scope["path"], scope["method"]
        if path in ROUTES:
            _require_method(method, "POST")
            await self._forward(scope, receive, send, record)
        elif path == "/v1/models" or path.removeprefix("/v1/models/") in self.settings.vocabularies:
            _require_method(method, "GET")
            await self.app(_plain_scope(scope, b""), receive, send)
        else:
            await (await self._answer_locally(path, method))(scope, receive, send)

    async def _answer_locally(self, path: str, method: str) -> Response:
        """Answer the routes that need no engine."""
        if path == DRAIN_ROUTE:
            _require_method(method, "POST")
            self.draining = True
            return JSONResponse({"under_way": self.under_way})
        if path not in {"/health", "/ready", "/metrics"}:
            raise RequestRefusedError(404, "there is no such route")
        _require_method(method, "GET")
        if path == "/metrics":
            return Response(self.metrics.render(self.under_way), media_type=CONTENT_TYPE_LATEST)
        if path == "/health":
            return JSONResponse({"status": "draining" if self.draining else "ok", "under_way": self.under_way})
        running = await asyncio.to_thread(count_replicas, self.settings.deployments)
        ready = all(running.values()) and not self.draining
        return JSONResponse({"ready": ready, "replicas": running}, status_code=200 if ready else 503)

    async def _forward(self, scope: Scope, receive: Receive, send: Send, record: "RequestRecord") -> None:
        settings = self.settings
        body = await _read_body(scope, receive, int(settings.limits.body_mib * 2**20))
        request = read_request(scope["path"], body, settings.limits, settings.vocabularies, settings.context)
        if request.no_repeat_ngram_size is not None and not settings.no_repeat_ngram:
            raise RequestRefusedError(
                400, "this endpoint was started without serving.no_repeat_ngram", "no_repeat_ngram_size"
            )
        record.model = request.model
        if self.draining:  # checked after the body has arrived, not before
            raise RequestRefusedError(503, "this endpoint is shutting down and takes no new requests")
        if self.under_way >= settings.limits.requests:
            raise RequestRefusedError(429, f"{self.under_way} requests are running or waiting; retry later")
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
class RequestRecord:
    """One request, for the metrics. `model` stays empty unless the request names a served model."""

    route: str
    model: str = ""
    status: int = CLIENT_GONE
    started: float = field(default_factory=time.monotonic)


class GatewayMetrics:
    """Prometheus metrics. Labels only take known routes, models and statuses, so clients cannot create new time series."""

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
            "cpo_ray_requests_under_way", "Requests that are running or waiting", registry=self.registry
        )

    def count(self, record: RequestRecord) -> None:
        """Count one finished request."""
        self.requests.labels(record.route, record.model, str(record.status)).inc()
        if record.model:
            self.seconds.labels(record.route, record.model).observe(time.monotonic() - record.started)

    def render(self, under_way: int) -> bytes:
        """The metrics in Prometheus' text format."""
        self.under_way.set(under_way)
        return generate_latest(self.registry)


def guard_middlewares() -> list[Middleware]:
    """Middlewares for Ray Serve's proxy, innermost first.

    Reads SETTINGS_VARIABLE and the keys' digests from the environment of the proxy, which `cpo-ray serve` or the manifest
    kuberay/service.yaml sets. Raises ServiceError if one is missing or cannot be used.
    """
    settings = os.environ.get(SETTINGS_VARIABLE, "")
    if not settings:
        raise ServiceError(f"{SETTINGS_VARIABLE} is not set: this proxy would serve without limits")
    expected, control = read_digests()
    return [
        Middleware(Gateway, settings=GatewaySettings.load(settings)),
        Middleware(KeyMiddleware, expected=expected, control=control),
    ]


def refuse(refusal: RequestRefusedError) -> JSONResponse:
    """The answer to a refused request, with OpenAI's error object."""
    content = {"message": refusal.message, "type": "invalid_request_error", "param": refusal.param, "code": None}
    waits = {429: RETRY_AFTER_S, 503: DRAIN_RETRY_AFTER_S}
    headers = {"Retry-After": str(waits[refusal.status])} if refusal.status in waits else {}
    return JSONResponse({"error": content}, status_code=refusal.status, headers=headers)


def count_replicas(deployments: dict[str, str]) -> dict[str, int]:
    """Model name -> running replicas, 0 if Ray Serve cannot be asked. Called in Serve's proxy; blocks."""
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException
    from ray.serve.schema import ReplicaState

    try:
        applications = serve.status().applications.values()
    except (RayError, RayServeException):  # Serve's controller is restarting
        return dict.fromkeys(deployments, 0)
    found = {name: deployment for application in applications for name, deployment in application.deployments.items()}
    return {
        model: found[name].replica_states.get(ReplicaState.RUNNING, 0) if name in found else 0
        for model, name in deployments.items()
    }


def _require_method(method: str, expected: str) -> None:
    if method != expected:
        raise RequestRefusedError(405, f"this route takes {expected}")


async def _read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """Read the whole body. Raises RequestRefusedError: 413 above `limit` bytes, 408 after a timeout, 400 if the client left."""
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
                    raise RequestRefusedError(400, "the client disconnected before its request was complete")
                body += message.get("body", b"")
                if len(body) > limit:
                    raise too_large
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise RequestRefusedError(408, f"the body did not arrive within {BODY_TIMEOUT_S:.0f} s") from None


def _plain_scope(scope: Scope, body: bytes) -> Scope:
    """The request with our headers only: the key is not passed on, and no client header reaches Serve or an engine."""
    headers = [
        (b"host", b"endpoint"),
        (b"accept", b"*/*"),
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", uuid.uuid4().hex.encode()),
    ]
    return {**scope, "headers": headers, "query_string": b""}
