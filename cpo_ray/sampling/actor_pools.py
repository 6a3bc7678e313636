"""How this wing runs on Ray Data: what each actor is given."""

from pathlib import Path
from typing import Any

from cpo_ray.cluster.raydata import LOGICAL_CPUS
from cpo_ray.config import PoolConfig, RunConfig
from cpo_ray.errors import ClusterError

SAMPLING_ACTOR = "an actor of the sampling stage"


def actor_options(config: RunConfig, pool: PoolConfig, gpus: float, calls: int | None = None) -> dict[str, Any]:
    """Arguments of `map_batches` for a pool of actors that take `gpus` each where the run uses GPUs.

    calls: how many run in an asynchronous actor at a time. Ray Data sends each as many again, which wait there.
    """
    import ray
    from ray.data import ActorPoolStrategy

    options: dict[str, Any] = {"batch_format": "pyarrow", "udf_modifying_row_count": False}
    each, most = config.cluster.gpus_per_worker, pool.maximum
    if each:
        there = ray.cluster_resources().get("GPU", 0.0)
        _check_gpus(config, there)
        options["num_gpus"] = gpus
        if not config.sampling.stream:  # else the trainers hold the rest
            most = most or max(pool.minimum, int(there / gpus))
    else:
        options["num_cpus"] = LOGICAL_CPUS
    sizes = {"min_size": pool.minimum, "max_size": most or pool.minimum}
    return options | {"compute": ActorPoolStrategy(**sizes, max_concurrent_calls_per_actor=calls)}


def _check_gpus(config: RunConfig, there: float) -> None:
    """Raise ClusterError where not even one actor of each sort finds its GPUs."""
    each = config.cluster.gpus_per_worker
    engine = config.sampling.engine.tensor_parallel if config.sampling.negatives.autoregressive else 0
    if there < 2 * each + engine:
        raise ClusterError(
            f"the cluster has {there:g} GPUs; sampling needs {2 * each + engine:g}: scorer {each:g} + embedder {each:g} "
            f"(cluster.gpus_per_worker) + engine {engine} (sampling.engine.tensor_parallel)"
        )


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Actors have a working directory of their own."""
    embedder = Path(config.sampling.embedder)
    if not embedder.is_dir():
        return config
    sampling = config.sampling.model_copy(update={"embedder": str(embedder.resolve())})
    return config.model_copy(update={"sampling": sampling})
