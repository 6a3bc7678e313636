import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from cpo_ray.config import DecodingConfig, ServingConfig
from cpo_ray.errors import ServiceError
from cpo_ray.evaluation.generation import generate_answers
from cpo_ray.serving.app import Endpoint, engine_options, serve_models
from tests.serving.tiny_llama import write_tiny_llama

CONFIG = ServingConfig.model_validate({"start_timeout_s": 300, "engine": {"kv_cache_gib": 0.25, "max_sequences": 32}})
PROMPTS = [[5, 6, 7], [300, 20, 41, 7], [900], list(range(50, 90))]
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny", seed=1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    import ray

    ray.init(num_cpus=8, object_store_memory=2**30, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield ray
    ray.shutdown()


def test_engine_options_keep_the_stored_dtype(model: Path, tmp_path: Path) -> None:
    options = engine_options(model, CONFIG, max_model_len=256, gpus_per_engine=0)
    assert options["dtype"] == "float32"
    assert options["kv_cache_memory_bytes"] == 2**28
    assert options["enforce_eager"]
    options = engine_options(model, CONFIG, max_model_len=256, gpus_per_engine=1)
    assert options["gpu_memory_utilization"] == CONFIG.engine.gpu_memory_utilization
    assert "kv_cache_memory_bytes" not in options
    with pytest.raises(ServiceError, match="is not a model directory"):
        engine_options(tmp_path, CONFIG, max_model_len=256, gpus_per_engine=0)


def test_nothing_to_serve_and_open_hosts_are_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CONFIG.key_variable, raising=False)
    with pytest.raises(ServiceError, match="no models"), serve_models({}, CONFIG, 256, 0):
        pass
    everywhere = CONFIG.model_copy(update={"host": "0.0.0.0"})
    with pytest.raises(ServiceError, match=CONFIG.key_variable), serve_models({"tiny": model}, everywhere, 256, 0):
        pass


@pytest.mark.e2e
def test_a_model_is_served_with_a_key_and_answers_as_transformers_does(
    cluster: Any, model: Path, tmp_path: Path
) -> None:
    from ray import serve

    ready: list[str] = []
    with serve_models({"tiny-0.50": model}, CONFIG, 256, 0, ready.append) as endpoint:
        assert ready == ["tiny-0.50"]
        _check_that_every_route_needs_the_key(endpoint)
        _check_greedy_answers(endpoint, model)
        _check_that_generation_reads_the_answers(endpoint, model, tmp_path)
        _check_beam_search(endpoint, model, tmp_path)
        with pytest.raises(ServiceError, match="already runs"), serve_models({"tiny": model}, CONFIG, 256, 0):
            pass
        assert len(_post(endpoint, {"prompt": [1], "max_tokens": 2})["choices"]) == 1  # the refused one broke nothing
    assert not serve.status().proxies
    with pytest.raises(httpx.ConnectError):
        httpx.get(endpoint.url, trust_env=False)


@pytest.mark.e2e
def test_a_model_that_cannot_start_is_named(cluster: Any, model: Path, tmp_path: Path) -> None:
    from ray import serve

    broken = shutil.copytree(model, tmp_path / "broken")
    description = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(description | {"num_attention_heads": 7}))
    with pytest.raises(ServiceError) as caught, serve_models({"broken": broken}, CONFIG, 256, 0):
        pass
    assert "broken" in str(caught.value)
    assert "7" in str(caught.value)
    assert not serve.status().proxies


def _check_that_every_route_needs_the_key(endpoint: Endpoint) -> None:
    root = endpoint.url.removesuffix("/v1")
    with httpx.Client(trust_env=False) as client:
        for path in ("/v1/models", "/v1/completions", "/no/such/route", "/-/healthz", "/-/routes", "/docs", "/"):
            for headers in ({}, {"Authorization": "Bearer wrong"}):
                for answer in (client.get(root + path, headers=headers), client.post(root + path, headers=headers)):
                    assert answer.status_code == 401, path
                    assert answer.json()["error"]["code"] == "invalid_api_key"
        client.headers["Authorization"] = f"Bearer {endpoint.key}"
        assert [card["id"] for card in client.get(f"{endpoint.url}/models").json()["data"]] == ["tiny-0.50"]
        assert client.get(root + "/no/such/route").status_code == 404


def _check_greedy_answers(endpoint: Endpoint, model: Path) -> None:
    for prompt, expected in zip(PROMPTS, _greedy(model), strict=True):
        body = {"prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0, "return_token_ids": True}
        answer = _post(endpoint, body)
        assert answer["choices"][0]["token_ids"] == expected
        assert answer["usage"]["completion_tokens"] == len(expected)
    stopped = _post(endpoint, {"prompt": [1], "max_tokens": 5, "allowed_token_ids": [0]})
    assert stopped["choices"][0]["finish_reason"] == "stop"
    assert stopped["usage"]["completion_tokens"] == 1  # the EOS: `generation` takes it off
    drawn = [
        _post(endpoint, {"prompt": [1], "max_tokens": 8, "seed": seed})["choices"][0]["text"] for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def _check_that_generation_reads_the_answers(endpoint: Endpoint, model: Path, tmp_path: Path) -> None:
    examples = [
        {"id": str(n), "prompt": "p", "response": "r", "prompt_ids": prompt} for n, prompt in enumerate(PROMPTS)
    ]
    out = tmp_path / "greedy.jsonl"
    summary = generate_answers(
        endpoint.url, endpoint.key, "tiny-0.50", examples, DecodingConfig(), NEW_TOKENS, 17, 4, out, lambda: None
    )
    assert summary["rows"] == len(PROMPTS)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    for row, expected in zip(rows, _greedy(model), strict=True):
        assert row["tokens"] == len(expected) - (row["finish_reason"] == "stop")


def _check_beam_search(endpoint: Endpoint, model: Path, tmp_path: Path) -> None:
    """Against a search in plain torch, for a penalty under which the length matters."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    reference, tokenizer = AutoModelForCausalLM.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    examples = [
        {"id": str(n), "prompt": "p", "response": "r", "prompt_ids": prompt} for n, prompt in enumerate(PROMPTS)
    ]
    decoding, out = DecodingConfig(beams=3, length_penalty=2.0), tmp_path / "beam.jsonl"
    generate_answers(endpoint.url, endpoint.key, "tiny-0.50", examples, decoding, 12, 17, 4, out, lambda: None)
    bests = [_search(reference, prompt, width=3, steps=12, penalty=2.0) for prompt in PROMPTS]
    assert bests != [tokens[:12] for tokens in _greedy(model)]
    for line, best in zip(out.read_text().splitlines(), bests, strict=True):
        row = json.loads(line)
        assert row["response"] == tokenizer.decode(best)
        assert row["tokens"] == len(best)


@torch.no_grad()
def _search(model: Any, prompt: list[int], width: int, steps: int, penalty: float) -> list[int]:
    """The best of beam search: the answer's tokens, without EOS (0)."""

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


def _post(endpoint: Endpoint, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {endpoint.key}"}
    url = f"{endpoint.url}/completions"
    answer = httpx.post(url, json={"model": "tiny-0.50", **body}, headers=headers, timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def _greedy(model: Path) -> list[list[int]]:
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(model).eval()
    answers = []
    with torch.no_grad():
        for prompt in PROMPTS:
            tokens = reference.generate(torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False)
            answers.append(tokens[0, len(prompt) :].tolist())
    return answers
