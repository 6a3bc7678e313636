"""Every model of a run behind one OpenAI-compatible endpoint: Ray Serve in front, one vLLM engine per model."""

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from cpo_ray.config import ServingConfig
from cpo_ray.errors import ServiceError
from cpo_ray.serving.keys import DIGEST_VARIABLE, choose_key, digest

APPLICATION = "cpo-ray"
POLL_S = 1.0
ENGINE_CPUS = 0.5  # logical: what an engine asks of Ray's books, so that several fit on a small machine

ENGINE_ENVIRONMENT = {
    "RAYLLM_VLLM_ENGINE_CLS": "cpo_ray.serving.engine.LeanEngine",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else every engine binds itself to the same cores
    "VLLM_NO_USAGE_STATS": "1",
    "RAYLLM_ENABLE_REQUEST_PROMPT_LOGS": "0",
    "HF_HUB_OFFLINE": "1",  # models are directories here; nothing is looked up
}


@dataclass(frozen=True)
class Endpoint:
    """Where the models answer: `url` ends in /v1; `key` goes into `Authorization: Bearer`."""

    url: str
    key: str = field(repr=False)


@contextlib.contextmanager
def serve_models(
    models: dict[str, Path],
    config: ServingConfig,
    max_model_len: int,
    gpus_per_engine: float,
    on_ready: Callable[[str], None] | None = None,
) -> Iterator[Endpoint]:
    """Serve `models` (name -> Hugging Face directory) until the block ends. Ray must be initialised.

    `max_model_len` is in tokens, prompt and answer together; `gpus_per_engine` 0 means CPU. `on_ready(name)` is called
    as each model answers its first token. Every route needs the key. Raises ServiceError for a host that needs a key
    of yours, a Serve instance that already runs on the cluster, or a model that is not up within
    `config.start_timeout_s`, naming it and the reason where Serve knows one.
    """
    if not models:
        raise ServiceError("no models to serve")
    key = choose_key(config.host, config.key_variable)

    from ray import serve
    from ray.serve.schema import LoggingConfig

    if serve.status().proxies:
        raise ServiceError(
            "Ray Serve already runs on this cluster, so its endpoint cannot be given this run's key. "
            "Wait for the other run, or end it with `serve shutdown`."
        )
    port = config.port or find_free_port(config.host)
    deadline = time.monotonic() + config.start_timeout_s
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": config.host, "port": port},
            logging_config=LoggingConfig(enable_access_log=False),
            controller_options={
                "runtime_env": {
                    "env_vars": {
                        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "cpo_ray.serving.keys.guard_middlewares",
                        DIGEST_VARIABLE: digest(key),
                    }
                }
            },
        )
        deployments = {name: f"{index}-{name.replace('/', '-').replace('.', '_')}" for index, name in enumerate(models)}
        application = _build_application(models, deployments, config, max_model_len, gpus_per_engine)
        target = serve.RunTarget(target=application, name=APPLICATION, route_prefix="/")
        serve.run_many([target], wait_for_applications_running=False)
        endpoint = Endpoint(_url(config.host, port), key)
        _wait_until_ready(endpoint, deployments, deadline, on_ready or (lambda _: None))
        yield endpoint
    finally:
        serve.shutdown()


def find_free_port(host: str) -> int:
    """A TCP port that nothing listens on now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def engine_options(model: Path, config: ServingConfig, max_model_len: int, gpus_per_engine: float) -> dict[str, Any]:
    """vLLM's engine arguments for one model directory.

    The dtype is the stored one: vLLM's `auto` would turn float32 into bfloat16, and greedy answers with it.
    """
    options: dict[str, Any] = {
        "dtype": _stored_dtype(model),
        "max_model_len": max_model_len,
        "max_num_seqs": config.engine.max_sequences,
        "tensor_parallel_size": config.engine.tensor_parallel,
        "generation_config": "vllm",  # decoding is what the request says, not what the model's directory says
        "trust_remote_code": False,
    }
    if gpus_per_engine:
        return options | {"gpu_memory_utilization": config.engine.gpu_memory_utilization}
    return options | {
        "enforce_eager": True,
        # vLLM 0.32 takes back a seeded draw when a prompt is cut between two steps, which CPU generators cannot do.
        "enable_chunked_prefill": False,
        "distributed_executor_backend": "mp",
        "kv_cache_memory_bytes": int(config.engine.kv_cache_gib * 2**30),
    }


def _build_application(
    models: dict[str, Path],
    deployments: dict[str, str],
    config: ServingConfig,
    max_model_len: int,
    gpus_per_engine: float,
) -> Any:
    from ray.serve.llm import LLMConfig, build_openai_app

    worker = {"CPU": ENGINE_CPUS}
    if gpus_per_engine:
        worker["GPU"] = gpus_per_engine / config.engine.tensor_parallel
    configs = [
        LLMConfig(
            model_loading_config={"model_id": name, "model_source": str(path.resolve())},
            engine_kwargs=engine_options(path, config, max_model_len, gpus_per_engine),
            placement_group_config={"bundles": [worker] * config.engine.tensor_parallel},
            runtime_env={"env_vars": ENGINE_ENVIRONMENT},
            deployment_config={
                "name": deployments[name],
                "num_replicas": 1,
                "max_constructor_retry_count": 1,
                "graceful_shutdown_timeout_s": 2,
                "ray_actor_options": {"num_cpus": 0.1},
            },
        )
        for name, path in models.items()
    ]
    ingress = {"num_replicas": 1, "graceful_shutdown_timeout_s": 2, "ray_actor_options": {"num_cpus": 0.1}}
    return build_openai_app({"llm_configs": configs, "ingress_deployment_config": ingress})


def _wait_until_ready(
    endpoint: Endpoint, deployments: dict[str, str], deadline: float, on_ready: Callable[[str], None]
) -> None:
    from ray import serve

    pending = dict(deployments)
    headers = {"Authorization": f"Bearer {endpoint.key}"}
    with httpx.Client(base_url=endpoint.url, headers=headers, trust_env=False) as client:
        while pending:
            application = serve.status().applications.get(APPLICATION)
            states = {} if application is None else application.deployments
            for name, deployment in list(pending.items()):
                state = states.get(f"LLMServer:{deployment}")
                if state is not None and state.status == "HEALTHY" and _answers(client, name, deadline):
                    del pending[name]
                    on_ready(name)
            failed = application is not None and application.status in {"DEPLOY_FAILED", "UNHEALTHY"}
            if pending and (failed or time.monotonic() > deadline):
                raise ServiceError(_explain_failure(pending, application, failed))
            time.sleep(POLL_S)
    if httpx.get(f"{endpoint.url}/models", trust_env=False, timeout=30).status_code != httpx.codes.UNAUTHORIZED:
        raise ServiceError(f"{endpoint.url} answers without its key; it was shut down")


def _answers(client: httpx.Client, model: str, deadline: float) -> bool:
    timeout = max(1.0, deadline - time.monotonic())
    try:
        listed = client.get("/models", timeout=timeout)
        if listed.status_code != httpx.codes.OK or model not in {card["id"] for card in listed.json()["data"]}:
            return False
        body = {"model": model, "prompt": [0], "max_tokens": 1, "temperature": 0}
        return client.post("/completions", json=body, timeout=timeout).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def _explain_failure(pending: dict[str, str], application: Any, failed: bool) -> str:
    """One line per model that is not up, with what Serve says of it."""
    lines = [f"not up {'(Serve gave up)' if failed else 'in time (serving.start_timeout_s)'}: {', '.join(pending)}"]
    for name, deployment in pending.items():
        state = application.deployments.get(f"LLMServer:{deployment}") if application is not None else None
        if state is not None:
            lines.append(f"  {name}: {state.status}: {_last_lines(state.message)}")
    if application is not None and application.message:
        lines.append(f"  Ray Serve: {_last_lines(application.message)}")
    return "\n".join(lines)


def _last_lines(message: str) -> str:
    """The end of a traceback: the exception, without the frames."""
    kept = [line.strip() for line in message.splitlines() if line.strip()]
    return " | ".join(kept[-3:])[-600:] or "no reason given"


def _stored_dtype(model: Path) -> str:
    try:
        description = json.loads((model / "config.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise ServiceError(f"{model} is not a model directory: config.json: {error}") from None
    return str(description.get("dtype") or description.get("torch_dtype") or "auto")


def _url(host: str, port: int) -> str:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://[{reachable}]:{port}/v1" if ":" in reachable else f"http://{reachable}:{port}/v1"
