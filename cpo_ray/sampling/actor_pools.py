"""The sampling stage on Ray Data: resources and pool size of each kind of actor."""

from pathlib import Path
from typing import Any

from cpo_ray.cluster.raydata import LOGICAL_CPUS
from cpo_ray.config import PoolConfig, RunConfig
from cpo_ray.errors import ClusterError

SAMPLING_ACTOR = "an actor of the sampling stage"


def actor_options(config: RunConfig, pool: PoolConfig, gpus: float, calls: int | None = None) -> dict[str, Any]:
    """Arguments of `map_batches` for a pool of actors, with `gpus` GPUs per actor if the run uses GPUs.

    calls: concurrent calls of an asynchronous actor. Ray Data sends each actor as many again, which wait in its queue.
    """
    import ray
    from ray.data import ActorPoolStrategy

    options: dict[str, Any] = {"batch_format": "pyarrow", "udf_modifying_row_count": False}
    maximum = pool.maximum
    if config.cluster.gpus_per_worker:
        available = ray.cluster_resources().get("GPU", 0.0)
        _check_gpus(config, available)
        options["num_gpus"] = gpus
        if not config.sampling.stream:  # with a stream, the trainers hold the other GPUs
            maximum = maximum or max(pool.minimum, int(available / gpus))
    else:
        options["num_cpus"] = LOGICAL_CPUS
    sizes = {"min_size": pool.minimum, "max_size": maximum or pool.minimum}
    return options | {"compute": ActorPoolStrategy(**sizes, max_concurrent_calls_per_actor=calls)}


def _check_gpus(config: RunConfig, available: float) -> None:
    """Raise ClusterError if the cluster has too few GPUs for one actor of each kind."""
    each = config.cluster.gpus_per_worker
    engine = config.sampling.engine.tensor_parallel if config.sampling.samples else 0
    if available < 2 * each + engine:
        raise ClusterError(
            f"the cluster has {available:g} GPUs; sampling needs {2 * each + engine:g}: scorer {each:g} + embedder {each:g} "
            f"(cluster.gpus_per_worker) + engine {engine} (sampling.engine.tensor_parallel)"
        )


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """The configuration with an absolute path of the embedder: the working directory of an actor is not the driver's."""
    embedder = Path(config.sampling.embedder)
    if not embedder.is_dir():
        return config
    sampling = config.sampling.model_copy(update={"embedder": str(embedder.resolve())})
    return config.model_copy(update={"sampling": sampling})
