"""The endpoint's key, and the guard that asks for it on every route.

Ray Serve's proxy loads the guard (`gate.guard_middlewares`), so this module imports nothing heavy. Ray itself only
ever sees the key's SHA-256: actors' environments show up in logs and dashboards, the key does not.
"""

import hashlib
import hmac
import ipaddress
import os
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from starlette.responses import JSONResponse

from cpo_ray.errors import ServiceError

DIGEST_VARIABLE = "CPO_RAY_ENDPOINT_KEY_SHA256"
CONTROL_DIGEST_VARIABLE = "CPO_RAY_CONTROL_KEY_SHA256"
DRAIN_ROUTE = "/-/drain"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def choose_key(host: str, variable: str, file: Path | None = None) -> str:
    """The key from the environment, else from `file`, else, on loopback alone, a fresh one.

    Raises ServiceError where `host` can be reached from elsewhere and there is no key, where `file` cannot be read or
    others can read it too, and for a key that no HTTP header can carry.
    """
    key, origin = os.environ.get(variable, "").strip(), f"the environment variable {variable}"
    if not key and file is not None:
        key, origin = _read_key(file), str(file)
    if not (key.isascii() and key.isprintable()):
        raise ServiceError(
            f"the key in {origin} holds characters that an HTTP header cannot carry; use printable ASCII"
        )
    if key:
        return key
    if not is_loopback(host):
        raise ServiceError(
            f"serving.host {host} can be reached from other machines, so the endpoint's key must be yours: "
            f"set the environment variable {variable}, name a key file, or serve on 127.0.0.1"
        )
    return secrets.token_urlsafe(32)


def _read_key(file: Path) -> str:
    try:
        mode, key = file.stat().st_mode, file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ServiceError(f"the key file {file} cannot be read: {error}") from None
    if mode & 0o077:
        raise ServiceError(f"the key file {file} can be read by others: chmod 600 {file}")
    if not key:
        raise ServiceError(f"the key file {file} is empty")
    return key


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
    """ASGI middleware: no `Authorization: Bearer <key>`, no entry, whatever the route. Answers 401 in OpenAI's error JSON.

    DRAIN_ROUTE has a key of its own, `control`, which only the process that serves knows.
    """

    def __init__(self, app: App, expected: str, control: str = "") -> None:
        self.app, self.expected, self.control = app, expected, control

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
        expected = self.control if scope["path"] == DRAIN_ROUTE else self.expected
        given = [value for name, value in scope.get("headers", []) if name == b"authorization"]
        if len(given) != 1:
            return False
        scheme, _, key = given[0].partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(hashlib.sha256(key).hexdigest(), expected)


def read_digests() -> tuple[str, str]:
    """Both keys' digests from the proxy's environment. Raises ServiceError where one is missing."""
    found = tuple(os.environ.get(variable, "") for variable in (DIGEST_VARIABLE, CONTROL_DIGEST_VARIABLE))
    if not all(found):
        raise ServiceError(
            f"{DIGEST_VARIABLE} or {CONTROL_DIGEST_VARIABLE} is not set: this proxy would serve without a key"
        )
    return found[0], found[1]
