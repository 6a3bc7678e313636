"""A server with the part of the Hugging Face hub's protocol that reading a dataset, or a model's headers, needs."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "c" * 40


class Hub(BaseHTTPRequestHandler):
    """One dataset (or model) with these files, none of them in a folder."""

    protocol_version = "HTTP/1.1"
    name: str
    kind: str
    files: dict[str, bytes]

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        folder = "" if self.kind == "models" else f"/{self.kind}"
        api, files = f"/api/{self.kind}/{self.name}", f"{folder}/{self.name}/resolve/"
        if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}", f"{api}/revision/v1"):
            listed = [{"rfilename": name} for name in self.files]
            self.reply({"id": self.name, "sha": COMMIT, "siblings": listed, "private": False, "tags": []})
        elif path == f"{api}/tree/{COMMIT}":
            self.reply([self.describe(name) for name in self.files])
        elif path.startswith(f"{api}/revision/"):
            self.reply({"error": "no such revision"}, 404, "RevisionNotFound")
        elif path.startswith(f"{api}/tree/"):
            self.reply({"error": "no such folder"}, 404, "EntryNotFound")
        elif path.startswith(files):
            self.send(path.removeprefix(files).split("/", 1)[1])
        else:
            self.reply({"error": "not found"}, 404, "RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["content-length"])).decode()
        self.reply([self.describe(name) for name in self.files if name in asked])

    def describe(self, name: str) -> dict[str, object]:
        return {"type": "file", "path": name, "oid": digest(self.files[name]), "size": len(self.files[name])}

    def send(self, name: str) -> None:
        if name not in self.files:
            self.reply({"error": "no such file"}, 404, "EntryNotFound")
            return
        content = self.files[name]
        self.send_response(200)
        for key, value in {"etag": f'"{digest(content)}"', "x-repo-commit": COMMIT, "accept-ranges": "bytes"}.items():
            self.send_header(key, value)
        self.finish_with(content)

    def reply(self, content: object, status: int = 200, error: str = "") -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("x-repo-commit", COMMIT)
        if error:
            self.send_header("x-error-code", error)
        self.finish_with(json.dumps(content).encode())

    def finish_with(self, content: bytes) -> None:
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def digest(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@contextlib.contextmanager
def serve_hub(name: str, files: dict[str, bytes], home: Path, kind: str = "datasets") -> Iterator[dict[str, str]]:
    """Environment variables that make a process use this server as the hub. home: their cache. kind: or `models`."""
    handler = type("BoundHub", (Hub,), {"name": name, "files": files, "kind": kind})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(home)}
        finally:
            server.shutdown()
