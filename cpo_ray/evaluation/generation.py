"""Generate every model's answers to the test prompts through the endpoint: same prompts, same seeds, same order."""

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cpo_ray.artifacts import Journal, Summary, content_key, read_jsonl, write_rows
from cpo_ray.config import DecodingConfig
from cpo_ray.errors import ServiceError
from cpo_ray.inference.client import Client, require_choice, run_bounded
from cpo_ray.records import Generation

RETRIES = 14  # about six minutes: a lost machine is detected after 30 s, and an engine restarts in one or two minutes


def generate_answers(
    url: str,
    key: str,
    model: str,
    examples: Sequence[Mapping[str, Any]],
    decoding: DecodingConfig,
    max_tokens: int,
    seed: int,
    concurrency: int,
    out: Path,
    on_row: Callable[[], None],
) -> Summary:
    """Ask `model` at `url` (ending in /v1) to continue each example's `prompt_ids`; write records.Generation rows to `out`.

    `examples` have the fields of records.Example. Answers are at most `max_tokens` tokens, EOS included. A row is sampled
    with a seed made from `seed` and its id, so it does not depend on `concurrency` or on earlier requests. Finished rows
    are kept in `<out>.partial` and are not requested again after a kill. `out` is written atomically, in the order of
    `examples`; if it exists already, from the same arguments, nothing is requested. `on_row()` is called once per row.

    Returns {"rows", "tokens", "mean_tokens", "truncated", "empty"}.

    Raises ServiceError if the endpoint refuses or keeps failing.
    """
    journal_path = out.with_name(f"{out.name}.partial")
    if out.exists():  # an earlier run finished this decoding and was killed in a later one
        journal_path.unlink(missing_ok=True)
        rows = read_jsonl(out)
        for _ in rows:
            on_row()
        return _summarise(rows)
    bodies = [_build_request(example, model, decoding, max_tokens, seed) for example in examples]
    with Journal(journal_path) as journal:
        asyncio.run(_send_requests(Client(url, key, RETRIES), bodies, journal, concurrency, on_row))
        rows = [_to_row(example, journal[content_key(body)]) for example, body in zip(examples, bodies, strict=True)]
    write_rows(out, rows)
    journal_path.unlink()
    return _summarise(rows)


def row_seed(seed: int, row_id: str) -> int:
    """A 31-bit seed from the run's seed and the row's id."""
    return int.from_bytes(hashlib.sha256(f"{seed}:generation:{row_id}".encode()).digest()[:4], "big") >> 1


def _build_request(
    example: Mapping[str, Any], model: str, decoding: DecodingConfig, max_tokens: int, seed: int
) -> dict[str, Any]:
    body = {
        "model": model,
        "prompt": [int(token) for token in example["prompt_ids"]],
        "max_tokens": max_tokens,
        "temperature": decoding.temperature,
    }
    if decoding.beams > 1:  # vLLM returns all beams, the best first, and its usage counts the tokens of all of them
        beams = {"use_beam_search": True, "n": decoding.beams, "length_penalty": decoding.length_penalty}
        return body | beams | {"return_token_ids": True}
    body |= {"top_p": decoding.top_p, "top_k": decoding.top_k, "seed": row_seed(seed, example["id"])}
    if decoding.repetition_penalty != 1:
        body["repetition_penalty"] = decoding.repetition_penalty
    if decoding.no_repeat_ngram:
        body["no_repeat_ngram_size"] = decoding.no_repeat_ngram
    return body


async def _send_requests(
    client: Client, bodies: list[dict[str, Any]], journal: Journal, concurrency: int, on_row: Callable[[], None]
) -> None:
    async def send(body: dict[str, Any]) -> None:
        key = content_key(body)
        if key not in journal:
            journal.add(key, _read_answer(await client.post("/completions", body, require_choice), body))
        on_row()

    async with client:
        await run_bounded(bodies, concurrency, send)


def _read_answer(answer: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    """Return text, token count and finish reason. The API counts the final EOS of an answer; we do not."""
    try:
        choice = answer["choices"][0]
        text, finish_reason = str(choice["text"]), str(choice["finish_reason"])
        if "use_beam_search" in body:
            tokens = len(choice["token_ids"])  # without the EOS
        else:
            tokens = int(answer["usage"]["completion_tokens"]) - (finish_reason == "stop")
    except (KeyError, IndexError, TypeError) as error:
        raise ServiceError(f"{body['model']} answered without {error}: {str(answer)[:300]}") from None
    if finish_reason not in {"stop", "length"}:
        raise ServiceError(f"{body['model']} stopped for an unknown reason: {finish_reason}")
    return {"response": text, "tokens": tokens, "finish_reason": finish_reason}


def _to_row(example: Mapping[str, Any], answer: dict[str, Any]) -> Generation:
    return Generation(
        id=example["id"],
        prompt=example["prompt"],
        reference=example["response"],
        response=answer["response"],
        tokens=answer["tokens"],
        finish_reason=answer["finish_reason"],
    )


def _summarise(rows: list[Generation]) -> Summary:
    tokens = sum(row["tokens"] for row in rows)
    return {
        "rows": len(rows),
        "tokens": tokens,
        "mean_tokens": round(tokens / len(rows), 2) if rows else 0.0,
        "truncated": sum(row["finish_reason"] == "length" for row in rows),
        "empty": sum(not row["response"].strip() for row in rows),
    }
