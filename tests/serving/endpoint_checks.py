"""What a running endpoint must do, and what transformers answers to the same prompts."""

import json
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch

from cpo_ray.config import DecodingConfig, ServingConfig
from cpo_ray.evaluation.generation import generate_answers
from cpo_ray.serving.app import Endpoint, drain
from tests.engines import engine_processes
from tests.waiting import eventually

CONFIG = ServingConfig.model_validate({"start_timeout_s": 300, "engine": {"kv_cache_gib": 0.25, "max_sequences": 32}})
SHARED = CONFIG.model_copy(update={"in_place": True, "no_repeat_ngram": True})
PROMPTS = [[5, 6, 7], [300, 20, 41, 7], [900], list(range(50, 90))]
NEW_TOKENS = 24


def check_that_every_route_needs_the_key(endpoint: Endpoint) -> None:
    with httpx.Client(trust_env=False) as client:
        for path in (
            "/v1/models", "/v1/completions", "/v1/chat/completions", "/no/such/route", "/health", "/ready", "/metrics",
            "/-/healthz", "/-/routes", "/-/drain", "/docs", "/openapi.json", "/",
        ):  # fmt: skip
            for headers in ({}, {"Authorization": "Bearer wrong"}):
                for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
                    answer = client.request(method, endpoint.root + path, headers=headers)
                    assert answer.status_code == 401, (method, path)
                    assert answer.json()["error"]["code"] == "invalid_api_key"
        client.headers["Authorization"] = f"Bearer {endpoint.key}"
        listed = client.get(f"{endpoint.url}/models").json()["data"]
        assert [card["id"] for card in listed] == ["tiny-0.50", "tiny-1.00"]
        assert client.get(f"{endpoint.url}/models/tiny-1.00").json()["id"] == "tiny-1.00"
        assert client.get(endpoint.root + "/no/such/route").status_code == 404
        assert client.post(endpoint.root + "/-/drain").status_code == 401


def check_health_and_metrics(endpoint: Endpoint) -> None:
    headers = {"Authorization": f"Bearer {endpoint.key}"}
    assert httpx.get(f"{endpoint.root}/health", headers=headers).json() == {"status": "ok", "under_way": 0}
    ready = httpx.get(f"{endpoint.root}/ready", headers=headers)
    assert (ready.status_code, ready.json()["replicas"]) == (200, {"tiny-0.50": 1, "tiny-1.00": 1})
    metrics = httpx.get(f"{endpoint.root}/metrics", headers=headers).text
    assert 'cpo_ray_requests_total{model="tiny-0.50",route="/v1/completions",status="200"} 1.0' in metrics


def check_greedy_answers(endpoint: Endpoint, name: str, model: Path) -> None:
    for prompt, expected in zip(PROMPTS, greedy(model), strict=True):
        body = {"model": name, "prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0, "return_token_ids": True}
        answer = post(endpoint, body)
        assert answer["model"] == name
        assert answer["choices"][0]["token_ids"] == expected
        assert answer["usage"]["completion_tokens"] == len(expected)


def check_that_mixed_requests_get_their_own_model(endpoint: Endpoint, models: dict[str, Path]) -> None:
    asked = [(name, index) for index in range(len(PROMPTS)) for name in models] * 2

    def ask(question: tuple[str, int]) -> list[int]:
        name, index = question
        body = {"model": name, "prompt": PROMPTS[index], "max_tokens": NEW_TOKENS, "temperature": 0}
        return post(endpoint, body | {"return_token_ids": True})["choices"][0]["token_ids"]  # type: ignore[no-any-return]

    expected = {name: greedy(model) for name, model in models.items()}
    with ThreadPoolExecutor(len(asked)) as threads:
        assert list(threads.map(ask, asked)) == [expected[name][index] for name, index in asked]


def check_that_no_ngram_repeats(endpoint: Endpoint, name: str, model: Path) -> None:
    """Requests with and without the rule, in the same batches."""
    sizes, prompts = (None, 1, 2, 3), [*PROMPTS, [5, 6, 7, 5, 6]]
    asked = [(size, prompt) for prompt in prompts for size in sizes]

    def ask(question: tuple[int | None, list[int]]) -> list[int]:
        size, prompt = question
        body = {"model": name, "prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0, "return_token_ids": True}
        return post(endpoint, body | ({} if size is None else {"no_repeat_ngram_size": size}))["choices"][0][
            "token_ids"
        ]  # type: ignore[no-any-return]

    with ThreadPoolExecutor(len(asked)) as threads:
        found = list(threads.map(ask, asked))
    expected = {size: greedy(model, prompts, no_repeat_ngram_size=size) for size in sizes}
    assert found == [expected[size][prompts.index(prompt)] for size, prompt in asked]
    assert expected[2] != expected[None], "the rule changed no answer, which proves nothing"


def check_stop_seed_and_beams(endpoint: Endpoint) -> None:
    stopped = post(endpoint, {"prompt": [1], "max_tokens": 5, "allowed_token_ids": [0]})
    assert stopped["choices"][0]["finish_reason"] == "stop"
    assert stopped["usage"]["completion_tokens"] == 1  # the EOS, which stage `generation` removes
    drawn = [post(endpoint, {"prompt": [1], "max_tokens": 8, "seed": seed})["choices"][0]["text"] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    beams = post(endpoint, {"prompt": [1], "max_tokens": 4, "n": 3, "use_beam_search": True})["choices"]
    assert len(beams) == 3


def check_that_disconnected_clients_block_no_other(endpoint: Endpoint) -> None:
    headers = {"Authorization": f"Bearer {endpoint.key}"}
    body = {"model": "tiny-0.50", "prompt": [1], "max_tokens": 240, "ignore_eos": True, "n": 8, "temperature": 1}
    for _ in range(3):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{endpoint.url}/completions", json=body, headers=headers, timeout=0.05, trust_env=False)
    assert post(endpoint, {"model": "tiny-1.00", "prompt": [1], "max_tokens": 2})["model"] == "tiny-1.00"
    assert eventually(lambda: httpx.get(f"{endpoint.root}/health", headers=headers).json()["under_way"] == 0)


def check_that_extreme_requests_harm_no_engine(endpoint: Endpoint) -> None:
    """Requests that the gateway accepts but that are extreme: longest prompts, last token ids, every parameter at its bound."""
    headers = {"Authorization": f"Bearer {endpoint.key}"}
    extremes: dict[str, list[Any]] = {
        "prompt": ["", "x" * 3000, [1023] * 255, [1023] * 256, [[1], [2, 3]], ["a", "b"], "😀" * 20],
        "max_tokens": [1, 255, 256, 100_000],
        "temperature": [0, 1e-30, 100],
        "top_p": [1e-30, 1],
        "top_k": [-1, 0, 1, 2**31 - 1],
        "min_p": [0, 1],
        "n": [1, 8],
        "seed": [0, 2**62 - 1],
        "stop": ["a", ["a", "b"]],
        "logprobs": [0, 20],
        "echo": [True],
        "repetition_penalty": [0.01, 10],
        "presence_penalty": [-2, 2],
        "stop_token_ids": [[1023]],
        "allowed_token_ids": [[0], [1023]],
        "logit_bias": [{"1023": 100}, {"0": -100}],
        "min_tokens": [0, 5, 300],
        "ignore_eos": [True],
        "no_repeat_ngram_size": [1, 3, 10_000],
        "use_beam_search": [True],
        "length_penalty": [-10, 10],
        "stream": [True],
    }
    draw = random.Random(3)
    with httpx.Client(headers=headers, timeout=60, trust_env=False) as client:
        statuses = Counter()
        for _ in range(80):
            body = {"model": "tiny-0.50", "prompt": [5], "max_tokens": 2}
            for key in draw.sample(sorted(extremes), 4):
                body[key] = draw.choice(extremes[key])
            answer = client.post(f"{endpoint.url}/completions", json=body)
            statuses[answer.status_code] += 1
            assert answer.status_code in {200, 400}, (body, answer.text)
        chat = {"model": "tiny-0.50", "messages": [{"role": "user", "content": "hello"}]}
        assert (
            client.post(f"{endpoint.url}/chat/completions", json=chat).status_code == 400
        )  # the tokenizer has no chat template
    assert statuses[200] > 10
    assert len(post(endpoint, {"prompt": [1], "max_tokens": 2})["choices"]) == 1


def check_that_a_killed_replica_loses_and_repeats_no_answer(endpoint: Endpoint, model: Path, tmp_path: Path) -> None:
    prompts = [[5 + n, 6, 7] for n in range(120)]
    examples = [
        {"id": str(n), "prompt": "p", "response": "r", "prompt_ids": prompt} for n, prompt in enumerate(prompts)
    ]
    out, seen = tmp_path / "greedy.jsonl", []
    (engine,) = engine_processes()
    victims = [engine.parent(), engine]

    def on_row() -> None:
        seen.append(1)
        if len(seen) == 20:
            victims[0].kill()

    summary = generate_answers(
        endpoint.url, endpoint.key, "tiny-1.00", examples, DecodingConfig(), NEW_TOKENS, 17, 8, out, on_row
    )
    assert summary["rows"] == len(prompts) == len(seen)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == [example["id"] for example in examples]
    for row, expected in zip(rows[:: len(rows) // 12], greedy(model, prompts[:: len(rows) // 12]), strict=True):
        assert row["tokens"] == len(expected) - (row["finish_reason"] == "stop")
        assert row["response"]
        assert decode(model, expected).startswith(row["response"])  # vLLM omits an incomplete last character
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in victims)


def check_that_draining_finishes_running_requests(endpoint: Endpoint) -> None:
    with ThreadPoolExecutor(1) as thread:
        last = thread.submit(post, endpoint, {"prompt": [1], "max_tokens": 200, "ignore_eos": True})
        headers = {"Authorization": f"Bearer {endpoint.key}"}
        while httpx.get(f"{endpoint.root}/health", headers=headers).json()["under_way"] == 0:
            assert not last.done()
        assert drain(endpoint, 60) == 0
        assert last.result()["usage"]["completion_tokens"] == 200
    refused = httpx.post(f"{endpoint.url}/completions", headers=headers, json={"model": "tiny-0.50", "prompt": "x"})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")


def check_beam_search(endpoint: Endpoint, model: Path, tmp_path: Path) -> None:
    """Compare with a beam search in plain torch, with a length penalty that matters."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    reference, tokenizer = AutoModelForCausalLM.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    examples = [
        {"id": str(n), "prompt": "p", "response": "r", "prompt_ids": prompt} for n, prompt in enumerate(PROMPTS)
    ]
    decoding, out = DecodingConfig(beams=3, length_penalty=2.0), tmp_path / "beam.jsonl"
    generate_answers(endpoint.url, endpoint.key, "tiny-0.50", examples, decoding, 12, 17, 4, out, lambda: None)
    bests = [search(reference, prompt, width=3, steps=12, penalty=2.0) for prompt in PROMPTS]
    assert bests != [tokens[:12] for tokens in greedy(model)]
    for line, best in zip(out.read_text().splitlines(), bests, strict=True):
        row = json.loads(line)
        assert row["response"] == tokenizer.decode(best)
        assert row["tokens"] == len(best)


@torch.no_grad()
def search(model: Any, prompt: list[int], width: int, steps: int, penalty: float) -> list[int]:
    """The best answer of beam search: its tokens, without EOS (0)."""

    def score(beam: tuple[float, list[int]]) -> float:
        return beam[0] / len(beam[1]) ** penalty

    beams, ended = [(0.0, prompt)], []
    for _ in range(steps):
        logps = model(torch.tensor([tokens for _, tokens in beams])).logits[:, -1].log_softmax(-1)
        values, ids = logps.topk(2 * width)
        grown = [
            (total + value, [*tokens, token])
            for (total, tokens), row, row_ids in zip(beams, values.tolist(), ids.tolist(), strict=True)
            for value, token in zip(row, row_ids, strict=True)
        ]
        ended += [(total, tokens[:-1]) for total, tokens in grown if tokens[-1] == 0]
        beams = sorted((beam for beam in grown if beam[1][-1] != 0), reverse=True)[:width]
    return max(ended + beams, key=score)[1][len(prompt) :]


def post(endpoint: Endpoint, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {endpoint.key}"}
    url = f"{endpoint.url}/completions"
    answer = httpx.post(url, json={"model": "tiny-0.50", **body}, headers=headers, timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def greedy(model: Path, prompts: list[list[int]] = PROMPTS, **rules: Any) -> list[list[int]]:
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(model).eval()
    answers = []
    with torch.no_grad():
        for prompt in prompts:
            tokens = reference.generate(torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False, **rules)
            answers.append(tokens[0, len(prompt) :].tolist())
    return answers


def decode(model: Path, tokens: list[int]) -> str:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model).decode(tokens, skip_special_tokens=True)  # type: ignore[no-any-return]
