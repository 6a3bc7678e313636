"""The endpoint's API key, and the middleware that requires it on every route.

Ray Serve's proxy loads the middleware (`gateway.guard_middlewares`), so this module imports nothing heavy. Ray only gets the
key's SHA-256, because actors' environments show up in logs and dashboards.
"""

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from starlette.responses import JSONResponse

from cpo_ray.cluster.loopback import is_loopback
from cpo_ray.errors import ServiceError

DIGEST_VARIABLE = "CPO_RAY_ENDPOINT_KEY_SHA256"
CONTROL_DIGEST_VARIABLE = "CPO_RAY_CONTROL_KEY_SHA256"
DRAIN_ROUTE = "/-/drain"
DIGEST = re.compile("[0-9a-f]{64}")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def choose_key(host: str, variable: str, file: Path | None = None) -> str:
    """Read the key from the environment, otherwise from `file`; on loopback, generate one if neither is set.

    Raises ServiceError if there is no key and `host` can be reached from other machines, if `file` cannot be read or is
    readable by other users, and if an HTTP header cannot carry the key.
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
            f"serving.host {host} can be reached from other machines, so you must choose the endpoint's key: "
            f"set the environment variable {variable}, name a key file, or serve on 127.0.0.1"
        )
    return secrets.token_urlsafe(32)


def _read_key(file: Path) -> str:
    try:
        mode, key = file.stat().st_mode, file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ServiceError(f"the key file {file} cannot be read: {error}") from None
    if mode & 0o077:
        raise ServiceError(f"the key file {file} can be read by other users: chmod 600 {file}")
    if not key:
        raise ServiceError(f"the key file {file} is empty")
    return key


def digest(key: str) -> str:
    """SHA-256 of a key, hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()


class KeyMiddleware:
    """ASGI middleware that requires `Authorization: Bearer KEY` on every route; otherwise answers 401 as OpenAI's API does.

    DRAIN_ROUTE requires a different key, `control`, which only the serving process has. An empty digest fits no key.
    """

    def __init__(self, app: App, expected: str, control: str = "") -> None:
        self.app, self.expected, self.control = app, expected, control

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on lifespan events and requests with the right key; close other websockets, answer 401 to other requests."""
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
        """Whether the request has the right key. Digests of equal length are compared in constant time."""
        expected = self.control if scope["path"] == DRAIN_ROUTE else self.expected
        given = [value for name, value in scope.get("headers", []) if name == b"authorization"]
        if len(given) != 1:
            return False
        scheme, _, key = given[0].partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(hashlib.sha256(key).hexdigest(), expected)


def read_digests() -> tuple[str, str]:
    """The digests of the key and of the control key, from the proxy's environment, as sha256sum prints them.

    Without a control key its digest is empty, and nobody can call DRAIN_ROUTE. Raises ServiceError if the key's digest is
    missing, or if one is not a SHA-256.
    """
    expected, control = _read_digest(DIGEST_VARIABLE), _read_digest(CONTROL_DIGEST_VARIABLE)
    if not expected:
        raise ServiceError(f"{DIGEST_VARIABLE} is not set: this proxy would serve without a key")
    return expected, control


def _read_digest(variable: str) -> str:
    found, *rest = os.environ.get(variable, "").split() or [""]
    if (found and not DIGEST.fullmatch(found)) or rest not in ([], ["-"]):
        raise ServiceError(
            f"{variable} is not a SHA-256 in hexadecimal: set it to the output of printf %s KEY | sha256sum"
        )
    return found
