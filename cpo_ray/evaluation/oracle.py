"""The demo's judge: an OpenAI-compatible endpoint that has the correct answers of the rows to judge.

It is called like any other judge, over a socket and with a key, so the demo runs the same client as a run with an LLM judge.
If the task has checkable answers (`answers.json`), its model is called `oracle` and judges correctness. Otherwise it is
called `overlap` and judges word-level F1 against the ground truth. That is a smoke test of the pipeline, not a judgement of
quality: the ground truth scores 1 against itself, so a model's answer can tie with it but never win.
"""

import contextlib
import difflib
import hmac
import json
import re
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from cpo_ray.artifacts import read_table
from cpo_ray.errors import ArtifactError, ServiceError
from cpo_ray.evaluation.templates import TEMPLATES

AMBIGUOUS = "AMBIGUOUS"  # a response or prompt imitates the template: more than one way to parse the message
UNKNOWN = "UNKNOWN"  # the message is not about a row of the split
START_TIMEOUT_S = 30.0
WORD = re.compile(r"[a-z0-9]+")

OracleScore = tuple[float, ...]


@dataclass(frozen=True)
class Oracle:
    """The judge's data: for each prompt, the reference words of every row that has this prompt."""

    name: Literal["oracle", "overlap"]
    references: dict[str, list[list[str]]]  # prompt -> answer words (oracle) or ground-truth words (overlap), per row
    filler: frozenset[str] = field(default=frozenset())

    def judge(self, message: str) -> str:
        """Return A or B, or AMBIGUOUS or UNKNOWN if the message is not exactly one question about one known prompt.

        Responses with equal scores get A in either order, so that a judging in both orders is a tie.
        """
        readings = [reading for template in TEMPLATES.values() for reading in self._read(message, template)]
        if len(readings) != 1:
            return AMBIGUOUS if readings else UNKNOWN
        prompt, first, second = readings[0]
        return "A" if self.score(prompt, first) >= self.score(prompt, second) else "B"

    def score(self, prompt: str, response: str) -> OracleScore:
        """Return the best score over the rows that share the prompt; higher is better."""
        words = content_words(response, self.filler)
        if self.name == "overlap":
            return max((word_f1(words, reference),) for reference in self.references[prompt])
        return max(_closeness(words, reference) for reference in self.references[prompt])

    def _read(self, message: str, template: str) -> Iterator[tuple[str, str, str]]:
        """Yield every way to parse `message` as this template with a known prompt: (prompt, response A, response B)."""
        opening, before_first, before_second, closing = template.split("{}")
        if not (message.startswith(opening) and message.endswith(closing)):
            return
        body = message[len(opening) : len(message) - len(closing)]
        for start in _positions(body, before_first):
            prompt, rest = body[:start], body[start + len(before_first) :]
            if prompt in self.references:
                for cut in _positions(rest, before_second):
                    yield prompt, rest[:cut], rest[cut + len(before_second) :]


def load_oracle(data: Path, split: str = "test") -> Oracle:
    """Load the oracle from a run's data artifact: `data/<split>/*.parquet` and, for tasks with answers, `data/answers.json`.

    `answers.json` is {"filler": [word, ...], "answers": {row id: [word, ...]}}. Raises ArtifactError if it is malformed
    or a row is missing from it.
    """
    rows = read_table(data / split).select(["id", "prompt", "response"]).to_pylist()
    references: dict[str, list[list[str]]] = {}
    path = data / "answers.json"
    if not path.is_file():
        for row in rows:
            references.setdefault(row["prompt"], []).append(content_words(row["response"], frozenset()))
        return Oracle("overlap", references)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        answers, filler = content["answers"], frozenset(content["filler"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is not a valid answers file: {error!r}") from None
    missing = [row["id"] for row in rows if row["id"] not in answers]
    if missing:
        raise ArtifactError(f"{path} lacks the answers of {len(missing)} {split} rows, for example {missing[0]}")
    for row in rows:
        references.setdefault(row["prompt"], []).append(content_words(" ".join(answers[row["id"]]), filler))
    return Oracle("oracle", references, filler)


def content_words(text: str, filler: frozenset[str]) -> list[str]:
    """Return the runs of letters and digits in lower case, in order, without the filler words."""
    return [word for word in WORD.findall(text.lower()) if word not in filler]


def word_f1(words: list[str], reference: list[str]) -> float:
    """Return the harmonic mean of precision and recall over word counts; 1 for two empty lists."""
    if not words and not reference:
        return 1.0
    shared = sum((Counter(words) & Counter(reference)).values())
    return 2 * shared / (len(words) + len(reference))


@contextlib.contextmanager
def serve_oracle(data: Path, split: str = "test") -> Iterator[tuple[str, str, str]]:
    """Serve the oracle of `data` on a free loopback port while the block runs; yields (url ending in /v1, key, model name).

    It can judge the rows of `split` only. Put the model name into the judge's config: it is `oracle` or `overlap`.
    Raises ArtifactError for data that it cannot read, ServiceError if the server does not start.
    """
    oracle, key = load_oracle(data, split), secrets.token_urlsafe(32)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
        options = uvicorn.Config(build_app(oracle, key), log_config=None, access_log=False, timeout_graceful_shutdown=5)
        server = uvicorn.Server(options)
        thread = threading.Thread(target=server.run, args=([listener],), name="oracle", daemon=True)
        thread.start()
        try:
            _wait_until_started(server, thread)
            yield f"http://127.0.0.1:{port}/v1", key, oracle.name
        finally:
            server.should_exit = True
            thread.join()


def build_app(oracle: Oracle, key: str) -> FastAPI:
    """Build the HTTP API: /v1/models and /v1/chat/completions. Every route needs the key."""
    app = FastAPI(openapi_url=None)
    expected = f"Bearer {key}".encode()

    @app.middleware("http")
    async def require_key(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        if hmac.compare_digest(request.headers.get("authorization", "").encode(), expected):
            return await call_next(request)
        return _refuse(401, "this endpoint requires an API key", "invalid_api_key")

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": oracle.name, "object": "model", "owned_by": "cpo-ray"}]}

    @app.post("/v1/chat/completions")
    async def complete_chat(request: Request) -> Response:
        try:
            body = json.loads(await request.body())
            model, message = body["model"], body["messages"][-1]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            return _refuse(400, "expected {model, messages: [..., {role, content}]}", "invalid_request")
        if model != oracle.name:
            return _refuse(404, f"no model {model!r}: this endpoint serves only {oracle.name!r}", "model_not_found")
        if not isinstance(message, str):
            return _refuse(400, "content must be text", "invalid_request")
        return JSONResponse(_chat_completion(oracle.name, message, oracle.judge(message)))

    return app


def _chat_completion(model: str, message: str, answer: str) -> dict[str, Any]:
    prompt_tokens = len(message.split())  # words, as an approximation
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": 1, "total_tokens": prompt_tokens + 1},
    }


def _refuse(status: int, message: str, code: str) -> JSONResponse:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return JSONResponse({"error": error}, status_code=status)


def _closeness(words: list[str], answer: list[str]) -> OracleScore:
    """Score (correct, similarity): a correct response beats an incorrect one; ties go to more words in common, in order."""
    matcher = difflib.SequenceMatcher(a=answer, b=words, autojunk=False)
    return (float(words == answer), matcher.ratio())


def _positions(text: str, part: str) -> Iterator[int]:
    position = text.find(part)
    while position >= 0:
        yield position
        position = text.find(part, position + 1)


def _wait_until_started(server: uvicorn.Server, thread: threading.Thread) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise ServiceError("the oracle's server did not start")
        time.sleep(0.01)
