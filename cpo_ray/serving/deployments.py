"""Build the Ray Serve application: one deployment per model, or one for all models, behind one ingress."""

import json
from pathlib import Path
from typing import Any

from cpo_ray.config import ServingConfig
from cpo_ray.errors import ServiceError

ENGINE_CPUS = 0.5  # logical CPUs, few so that several engines fit on a small machine
SWITCHING_WORKER = "cpo_ray.inference.vllm_worker.SwitchingWorker"
LOOPBACK_WORKER = "cpo_ray.cluster.loopback.LoopbackWorker"
NO_REPEAT_NGRAM = "cpo_ray.inference.no_repeat_ngram:NoRepeatNgram"
SHARED = "shared"  # name of the deployment whose engine serves all models
LONGEST_LOOK_BACK_S = 30.0  # Ray Serve's default
STARTS = 3  # attempts to start an engine: a process or a machine may be lost during the start
HEALTH_PERIOD_S = 2.0  # how soon Serve notices a lost replica

ENGINE_ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # otherwise every engine binds itself to the same cores
    "VLLM_NO_USAGE_STATS": "1",
    "RAYLLM_ENABLE_REQUEST_PROMPT_LOGS": "0",
    "HF_HUB_OFFLINE": "1",  # models are local directories; nothing is downloaded
}


def name_deployments(models: dict[str, Path], in_place: bool) -> dict[str, str]:
    """Model name -> its Serve deployment's name, without Ray's prefix."""
    if in_place:
        return dict.fromkeys(models, SHARED)
    return {name: f"{index}-{name.replace('/', '-').replace('.', '_')}" for index, name in enumerate(models)}


def deployment_of(model: str) -> str:
    """The Serve deployment of a model without a configured name: Ray's `build_openai_app` derives it from the model's id."""
    return f"LLMServer:{model.replace('/', '--').replace('.', '_')}"


def build_application(
    models: dict[str, Path],
    config: ServingConfig,
    max_model_len: int,
    gpus_per_engine: float,
) -> Any:
    """Build the application for `serve.run`. With `config.in_place` the engine starts with the first of `models`."""
    from ray.serve.llm import build_openai_app

    deployments = name_deployments(models, bool(config.in_place))
    engines = dict(list(models.items())[:1]) if config.in_place else models
    configs = [
        _configure(name, path, deployments[name], models, config, max_model_len, gpus_per_engine)
        for name, path in engines.items()
    ]
    arguments: dict[str, Any] = {
        "llm_configs": configs,
        "ingress_deployment_config": {
            "num_replicas": 1,
            "health_check_period_s": HEALTH_PERIOD_S,
            "graceful_shutdown_wait_loop_s": 0.5,
            "graceful_shutdown_timeout_s": config.drain_timeout_s,
            "ray_actor_options": {"num_cpus": 0.1},
        },
        "ingress_cls_config": {"ingress_cls": "cpo_ray.serving.ingress.Ingress"},
    }
    if config.in_place:
        arguments["ingress_cls_config"] = {
            "ingress_cls": "cpo_ray.serving.vllm_engine.SharedIngress",
            "ingress_extra_kwargs": {"names": list(models)},
        }
    return build_openai_app(arguments)


def engine_options(model: Path, config: ServingConfig, max_model_len: int, gpus_per_engine: float) -> dict[str, Any]:
    """vLLM's engine arguments for one model directory.

    The dtype is the stored one: vLLM's `auto` would convert float32 to bfloat16, which changes greedy answers.
    """
    options: dict[str, Any] = {
        "dtype": _stored_dtype(model),
        "max_model_len": max_model_len,
        "max_num_seqs": config.engine.max_sequences,
        "tensor_parallel_size": config.engine.tensor_parallel,
        "generation_config": "vllm",  # decoding parameters come from the request, not from the model's directory
        "trust_remote_code": False,
        "worker_extension_cls": SWITCHING_WORKER if config.in_place else LOOPBACK_WORKER,
    }
    if config.no_repeat_ngram:
        options["logits_processors"] = [NO_REPEAT_NGRAM]
    if gpus_per_engine:
        return options | {"gpu_memory_utilization": config.engine.memory_share}
    return options | {
        "enforce_eager": True,
        # vLLM 0.32 reverts a seeded draw if a prompt is split between two steps, which CPU generators cannot do.
        "enable_chunked_prefill": False,
        "distributed_executor_backend": "mp",
        "kv_cache_memory_bytes": int(config.engine.kv_cache_gib * 2**30),
    }


def scaling_options(config: ServingConfig) -> dict[str, Any]:
    """Serve's deployment options for the number of engines: fixed, or autoscaled with the load."""
    if config.min_replicas == config.max_replicas:
        return {"num_replicas": config.min_replicas}
    return {
        "autoscaling_config": {
            "min_replicas": config.min_replicas,
            "initial_replicas": config.min_replicas,
            "max_replicas": config.max_replicas,
            "target_ongoing_requests": config.requests_per_replica,
            "upscale_delay_s": config.scale_up_after_s,
            "downscale_delay_s": config.scale_down_after_s,
            # Load is averaged over this period, so it delays scaling as much as the delays above.
            "look_back_period_s": min(config.scale_up_after_s, config.scale_down_after_s, LONGEST_LOOK_BACK_S),
        }
    }


def read_description(model: Path) -> dict[str, Any]:
    """Read a model directory's config.json. Raises ServiceError if it is missing or invalid."""
    try:
        description = json.loads((model / "config.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ServiceError(f"{model} is not a model directory: config.json: {error}") from None
    if not isinstance(description, dict):
        raise ServiceError(f"{model} is not a model directory: config.json is not a JSON object")
    return description


def read_vocabulary(model: Path) -> int:
    """The model's vocabulary size, in token ids. Raises ServiceError if config.json lacks it."""
    size = read_description(model).get("vocab_size")
    if not isinstance(size, int):
        raise ServiceError(f"{model / 'config.json'} has no vocab_size, which is needed to check prompts")
    return size


def read_context(model: Path) -> int:
    """The model's context length in tokens, prompt and answer together. Raises ServiceError if config.json lacks it."""
    description = read_description(model)
    size = description.get("max_position_embeddings") or description.get("n_positions")
    if not isinstance(size, int):
        raise ServiceError(
            f"{model / 'config.json'} has neither max_position_embeddings nor n_positions; give --context"
        )
    return size


def _configure(
    name: str,
    path: Path,
    deployment: str,
    models: dict[str, Path],
    config: ServingConfig,
    max_model_len: int,
    gpus_per_engine: float,
) -> Any:
    from ray.serve.llm import LLMConfig

    worker = {"CPU": ENGINE_CPUS}
    if gpus_per_engine:
        worker["GPU"] = gpus_per_engine / config.engine.tensor_parallel
    engine = "SharedEngine" if config.in_place else "LeanEngine"
    environment = {**ENGINE_ENVIRONMENT, "RAYLLM_VLLM_ENGINE_CLS": f"cpo_ray.serving.vllm_engine.{engine}"}
    if config.no_repeat_ngram:
        environment["VLLM_USE_V2_MODEL_RUNNER"] = "0"  # its logits processors have another interface
    if not gpus_per_engine:
        # vLLM compiles the rank of a token's log-prob in C++, 8 s at the first request; not every CPU setting can compile it.
        environment["TORCH_COMPILE_DISABLE"] = "1"
    if config.in_place:
        folders = {model: str(folder.resolve()) for model, folder in models.items()}
        environment["CPO_RAY_SHARED_MODELS"] = json.dumps(folders)
    return LLMConfig(
        model_loading_config={"model_id": name, "model_source": str(path.resolve())},
        engine_kwargs=engine_options(path, config, max_model_len, gpus_per_engine),
        placement_group_config={"bundles": [worker] * config.engine.tensor_parallel},
        runtime_env={"env_vars": environment},
        deployment_config={
            "name": deployment,
            **scaling_options(config),
            "max_constructor_retry_count": STARTS,
            "health_check_period_s": HEALTH_PERIOD_S,
            "graceful_shutdown_wait_loop_s": 0.5,
            "graceful_shutdown_timeout_s": config.drain_timeout_s,
            "ray_actor_options": {"num_cpus": 0.1},
        },
    )


def _stored_dtype(model: Path) -> str:
    description = read_description(model)
    return str(description.get("dtype") or description.get("torch_dtype") or "auto")
