import json
import shutil
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from cpo_ray.config import ServingConfig
from cpo_ray.errors import ArtifactError, ServiceError
from cpo_ray.serving.app import choose_port, serve_models
from cpo_ray.serving.deployments import (
    NO_REPEAT_NGRAM,
    build_application,
    engine_options,
    read_context,
    read_vocabulary,
)
from tests.serving.endpoint_checks import (
    CONFIG,
    SHARED,
    check_beam_search,
    check_greedy_answers,
    check_health_and_metrics,
    check_stop_seed_and_beams,
    check_that_a_killed_replica_loses_and_repeats_no_answer,
    check_that_disconnected_clients_block_no_other,
    check_that_draining_finishes_running_requests,
    check_that_every_route_needs_the_key,
    check_that_extreme_requests_harm_no_engine,
    check_that_mixed_requests_get_their_own_model,
    check_that_no_ngram_repeats,
)
from tests.serving.tiny_llama import write_tiny_llama


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("other") / "tiny", seed=2)


def test_engine_options_keep_the_stored_dtype(model: Path, tmp_path: Path) -> None:
    options = engine_options(model, CONFIG, max_model_len=256, gpus_per_engine=0)
    assert options["dtype"] == "float32"
    assert options["kv_cache_memory_bytes"] == 2**28
    assert options["enforce_eager"]
    options = engine_options(model, CONFIG, max_model_len=256, gpus_per_engine=1)
    assert options["gpu_memory_utilization"] == CONFIG.engine.memory_share == 0.85
    assert "kv_cache_memory_bytes" not in options
    assert "logits_processors" not in options
    banning = CONFIG.model_copy(update={"no_repeat_ngram": True})
    assert engine_options(model, banning, 256, 1)["logits_processors"] == [NO_REPEAT_NGRAM]
    with pytest.raises(ServiceError, match="is not a model directory"):
        engine_options(tmp_path, CONFIG, max_model_len=256, gpus_per_engine=0)


def test_a_missing_or_invalid_config_key_is_named(model: Path, tmp_path: Path) -> None:
    assert (read_context(model), read_vocabulary(model)) == (256, 1024)
    for content, complaint in (
        ("[]", "not a JSON object"),
        ("{", "config.json"),
        ("{}", "has no vocab_size|has neither"),
    ):
        (tmp_path / "config.json").write_text(content)
        for read in (read_context, read_vocabulary):
            with pytest.raises(ServiceError, match=complaint):
                read(tmp_path)


def test_models_that_differ_cannot_share_an_engine(model: Path, tmp_path: Path) -> None:
    longer = shutil.copytree(model, tmp_path / "longer")
    description = json.loads((longer / "config.json").read_text())
    (longer / "config.json").write_text(json.dumps(description | {"rms_norm_eps": 0.1}))
    up = serve_models({"a": model, "b": longer}, SHARED, 256, 0)
    with pytest.raises(ArtifactError, match="cannot share one engine"), up:
        pass


def test_a_model_with_two_sets_of_weights_is_not_served(model: Path, tmp_path: Path) -> None:
    twice = shutil.copytree(model, tmp_path / "twice")
    shutil.copyfile(twice / "model.safetensors", twice / "model-00001-of-00002.safetensors")
    up = serve_models({"a": twice}, CONFIG, 256, 0)
    with pytest.raises(ArtifactError, match=r"twice holds two sets of weights"), up:
        pass


def test_nothing_to_serve_and_open_hosts_are_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CONFIG.key_variable, raising=False)
    with pytest.raises(ServiceError, match="no models"), serve_models({}, CONFIG, 256, 0):
        pass
    everywhere = CONFIG.model_copy(update={"host": "0.0.0.0"})
    with pytest.raises(ServiceError, match=CONFIG.key_variable), serve_models({"tiny": model}, everywhere, 256, 0):
        pass


def test_a_taken_port_is_reported_before_serve_starts(model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        taken = CONFIG.model_copy(update={"port": port})
        complaint = rf"cannot listen on 127.0.0.1, port {port}: Address already in use\. Choose another --port"
        with pytest.raises(ServiceError, match=complaint), serve_models({"tiny": model}, taken, 256, 0):
            pass
    assert choose_port("127.0.0.1", port) == port
    with pytest.raises(ServiceError, match=r"cannot listen on 192\.0\.2\.1, port 0"):
        choose_port("192.0.2.1", 0)


@pytest.mark.e2e
def test_serve_gets_the_configured_number_of_engines(cluster: Any, model: Path) -> None:
    def engines(**keys: Any) -> dict[str, Any]:
        config = ServingConfig.model_validate(keys)
        ingress = build_application({"a": model, "b.1": model}, config, 256, 0)._bound_deployment
        bound = [engine._bound_deployment for engine in ingress.init_kwargs["llm_deployments"].values()]
        return {deployment.name: deployment for deployment in bound}

    assert {name: engine.num_replicas for name, engine in engines().items()} == {
        "LLMServer:0-a": 1,
        "LLMServer:1-b_1": 1,
    }
    scaling = engines(min_replicas=1, max_replicas=3)["LLMServer:0-a"]._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (1, 3, 32)
    assert (scaling.upscale_delay_s, scaling.downscale_delay_s, scaling.look_back_period_s) == (30, 600, 30)
    assert list(engines(in_place=True)) == ["LLMServer:shared"]


@pytest.mark.e2e
def test_models_share_an_engine_in_place_behind_a_key_and_answer_as_transformers_does(
    cluster: Any, model: Path, other: Path, tmp_path: Path
) -> None:
    from ray import serve

    models, ready = {"tiny-0.50": model, "tiny-1.00": other}, []
    with serve_models(models, SHARED, 256, 0, ready.append) as endpoint:
        assert ready == list(models)
        check_that_every_route_needs_the_key(endpoint)
        check_health_and_metrics(endpoint)
        for name in ("tiny-0.50", "tiny-1.00", "tiny-0.50"):
            check_greedy_answers(endpoint, name, models[name])
        check_that_mixed_requests_get_their_own_model(endpoint, models)
        check_that_no_ngram_repeats(endpoint, "tiny-1.00", other)
        check_stop_seed_and_beams(endpoint)
        check_that_disconnected_clients_block_no_other(endpoint)
        check_that_extreme_requests_harm_no_engine(endpoint)
        check_beam_search(endpoint, model, tmp_path)
        with pytest.raises(ServiceError, match="already runs"), serve_models({"tiny": model}, CONFIG, 256, 0):
            pass
        check_that_a_killed_replica_loses_and_repeats_no_answer(endpoint, other, tmp_path)
        check_that_draining_finishes_running_requests(endpoint)
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
