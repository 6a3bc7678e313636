"""A real HTTP server that fails for a fraction of the requests."""

import contextlib
import json
import random
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "the-test-key"


@dataclass
class Service:
    """The server's behaviour, and a record of its requests."""

    url: str = ""
    answer: Callable[[dict[str, Any]], dict[str, Any] | bytes] = lambda _: {}  # bytes are sent as they are
    failing: float = 0.0
    retry_after: str = "0"
    status: int = 0  # answer every request with this status instead
    refuse: Callable[[dict[str, Any]], int] = lambda _: 0  # or answer a body with this status unless it is 0
    answered: list[dict[str, Any]] = field(default_factory=list)  # bodies that got a 200
    failures: list[str] = field(default_factory=list)
    under_way: int = 0
    most_at_once: int = 0
    rng: random.Random = field(default_factory=lambda: random.Random(1))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def enter(self) -> str:
        """Count a new request; return the failure to answer it with, or an empty string."""
        with self.lock:
            self.under_way += 1
            self.most_at_once = max(self.most_at_once, self.under_way)
            failure = self.rng.choice(["429", "500", "drop"]) if self.rng.random() < self.failing else ""
            if failure:
                self.failures.append(failure)
            return failure

    def leave(self) -> None:
        with self.lock:
            self.under_way -= 1


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise each answer waits 40 ms for an acknowledgement
    service: Service

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        failure = self.service.enter()
        try:
            self.react(body, failure)
        finally:
            self.service.leave()

    def react(self, body: dict[str, Any], failure: str) -> None:
        if self.headers.get("authorization") != f"Bearer {KEY}":
            self.reply(401, {"error": {"message": "no key"}})
        elif status := self.service.status or self.service.refuse(body):
            self.reply(status, {"error": {"message": "refused"}})
        elif failure == "drop":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif failure:
            self.reply(int(failure), {"error": {"message": "later"}})
        else:
            self.service.answered.append(body)
            self.reply(200, self.service.answer(body))

    def reply(self, status: int, content: dict[str, Any] | bytes) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        if status == 429:
            self.send_header("retry-after", self.service.retry_after)
        with contextlib.suppress(ConnectionError):  # the client was killed or disconnected
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 128  # default 5: the sixth simultaneous connection would be dropped and retried after 1 s


@contextlib.contextmanager
def serve_flaky(
    answer: Callable[[dict[str, Any]], dict[str, Any] | bytes], failing: float = 0.0, retry_after: str = "0"
) -> Iterator[Service]:
    """Answer requests with `answer(body)`, except a fraction `failing`: those get 429, 500 or a dropped connection."""
    service = Service(answer=answer, failing=failing, retry_after=retry_after)
    handler = type("BoundHandler", (Handler,), {"service": service})
    with Server(("127.0.0.1", 0), handler) as server:
        service.url = f"http://127.0.0.1:{server.server_port}/v1"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield service
        finally:
            server.shutdown()
            thread.join()
