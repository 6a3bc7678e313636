"""The sampling stage on Ray Data: resources and pool size of each kind of actor."""

from pathlib import Path
from typing import Any

from cpo_ray.cluster.raydata import LOGICAL_CPUS
from cpo_ray.cluster.resources import engine_gpus, pool_gpus
from cpo_ray.config import PoolConfig, RunConfig
from cpo_ray.errors import ClusterError

SAMPLING_ACTOR = "an actor of the sampling stage"


def actor_options(config: RunConfig, pool: PoolConfig, gpus: float, calls: int | None = None) -> dict[str, Any]:
    """Arguments of `map_batches` for a pool of actors with `gpus` GPUs each; 0 on the CPU.

    calls: concurrent calls of an asynchronous actor. Ray Data sends each actor as many again, which wait in its queue.
    """
    import ray
    from ray.data import ActorPoolStrategy

    options: dict[str, Any] = {"batch_format": "pyarrow", "udf_modifying_row_count": False}
    maximum = pool.maximum
    if gpus:
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
    """Raise ClusterError if the cluster has too few GPUs for one actor of each kind that works at the same time."""
    sampling = config.sampling
    engine = engine_gpus(config) if sampling.samples else 0.0
    scorer, embedder = (pool_gpus(config, pool) for pool in (sampling.scorers, sampling.rankers))
    needed = max(engine, scorer + embedder) if sampling.in_phases else engine + scorer + embedder
    if available < round(needed, 6):
        raise ClusterError(
            f"the cluster has {available:g} GPUs; sampling needs {needed:g}: scorer {scorer:g} + embedder {embedder:g} "
            f"(cluster.gpus_per_worker) {'after' if sampling.in_phases else '+'} engine {engine:g} "
            "(sampling.engine.tensor_parallel). `cpo-ray validate` prints who gets what"
        )


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """The configuration with an absolute path of the embedder: the working directory of an actor is not the driver's."""
    embedder = Path(config.sampling.embedder)
    if not embedder.is_dir():
        return config
    sampling = config.sampling.model_copy(update={"embedder": str(embedder.resolve())})
    return config.model_copy(update={"sampling": sampling})
