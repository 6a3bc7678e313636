"""The endpoint's key, and the guard that asks for it on every route.

Ray Serve's proxy loads the guard by name (`guard_middlewares`), so this module imports nothing heavy. Ray itself only
ever sees the key's SHA-256: actors' environments show up in logs and dashboards, the key does not.
"""

import hashlib
import hmac
import ipaddress
import os
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.middleware import Middleware
from starlette.responses import JSONResponse

from cpo_ray.errors import ServiceError

DIGEST_VARIABLE = "CPO_RAY_ENDPOINT_KEY_SHA256"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def choose_key(host: str, variable: str) -> str:
    """The key from the environment or, on loopback alone, a fresh one.

    Raises ServiceError where `host` can be reached from elsewhere and the environment holds no key, or one that no HTTP
    header can carry.
    """
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ServiceError(
            f"the key in {variable} holds characters that an HTTP header cannot carry; use printable ASCII"
        )
    if key:
        return key
    if not is_loopback(host):
        raise ServiceError(
            f"serving.host {host} can be reached from other machines, so the endpoint's key must be yours: "
            f"set the environment variable {variable}, or serve on 127.0.0.1"
        )
    return secrets.token_urlsafe(32)


def is_loopback(host: str) -> bool:
    """True for `localhost` and loopback addresses; any other name may resolve to anything."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def digest(key: str) -> str:
    """SHA-256 of a key, hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()


class KeyGuard:
    """ASGI middleware: no `Authorization: Bearer <key>`, no entry, whatever the route. Answers 401 in OpenAI's error JSON."""

    def __init__(self, app: App, expected: str) -> None:
        self.app, self.expected = app, expected

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass lifespan events and requests with the right key on; close websockets and answer 401 to the rest."""
        if scope["type"] == "lifespan" or self.admits(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            refusal = JSONResponse(
                {
                    "error": {
                        "message": "This endpoint needs its key: Authorization: Bearer KEY",
                        "type": "invalid_request_error",
                        "param": None,
                        "code": "invalid_api_key",
                    }
                },
                status_code=401,
                headers={"WWW-Authenticate": "Bearer"},
            )
            await refusal(scope, receive, send)

    def admits(self, scope: Scope) -> bool:
        """Compare in constant time; the digest makes both sides equally long."""
        given = [value for name, value in scope.get("headers", []) if name == b"authorization"]
        if len(given) != 1:
            return False
        scheme, _, key = given[0].partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(hashlib.sha256(key).hexdigest(), self.expected)


def guard_middlewares() -> list[Middleware]:
    """What Ray Serve's proxy puts around itself. Raises ServiceError where the environment names no digest."""
    expected = os.environ.get(DIGEST_VARIABLE, "")
    if not expected:
        raise ServiceError(f"{DIGEST_VARIABLE} is not set: this proxy would serve without a key")
    return [Middleware(KeyGuard, expected=expected)]
