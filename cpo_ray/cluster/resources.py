"""The resources that each stage waits for before it starts, as bundles: one bundle is one process on one node."""

from cpo_ray.cluster.raydata import LOGICAL_CPUS
from cpo_ray.cluster.waiting import Bundle
from cpo_ray.config import ClusterConfig, PoolConfig, RunConfig, TrainingConfig

STREAM_TASKS = (
    3  # two start units and may block on a snapshot; without a third that records units, streaming would deadlock
)


def engine_gpus(config: RunConfig) -> float:
    """GPUs of each engine that samples: whole cards, or a share of one; 0 on the CPU."""
    if not config.cluster.worker_gpus:
        return 0.0
    own = config.sampling.engines.gpus
    return float(config.sampling.engine.tensor_parallel) if own is None else own


def pool_gpus(config: RunConfig, pool: PoolConfig) -> float:
    """GPUs of each actor of a pool of scorers or rankers; 0 on the CPU."""
    return pool.gpus if pool.gpus is not None and config.cluster.worker_gpus else config.cluster.worker_gpus


def training_resources(training: TrainingConfig, cluster: ClusterConfig) -> list[Bundle]:
    """One bundle per worker, as Ray Train requests them."""
    return [_with_gpu({"CPU": 1.0}, cluster.worker_gpus)] * training.worker_count


def sampling_resources(config: RunConfig) -> list[Bundle]:
    """The minimum of scorers, rankers and, for autoregressive negatives, engines; more start if the cluster has room.

    In phases (`sampling.in_phases`) the engines alone, if there are any: they come first.
    """
    engines = _on_gpus(_engines(config))
    if config.sampling.in_phases and config.sampling.samples:
        return engines
    return [*scoring_resources(config), *engines]


def scoring_resources(config: RunConfig) -> list[Bundle]:
    """The minimum of scorers and rankers."""
    return _on_gpus(_scorers_and_rankers(config))


def streaming_resources(config: RunConfig) -> list[Bundle]:
    """Trainers and sampling actors together. Actors without a GPU count too, because all of them must run at once."""
    actors = [*_scorers_and_rankers(config), *_engines(config)]
    on_gpus = _on_gpus(actors)
    tasks = STREAM_TASKS + len(actors) - len(on_gpus)
    return [*training_resources(config.training, config.cluster), *on_gpus, *[{"CPU": LOGICAL_CPUS}] * tasks]


def serving_resources(config: RunConfig, models: int) -> list[Bundle]:
    """The minimum of engines for `models` models, each on `tensor_parallel` GPUs."""
    if not config.cluster.worker_gpus:
        return []
    return [{"GPU": 1.0}] * (config.serving.engines(models) * config.serving.engine.tensor_parallel)


def scorer_resources(cluster: ClusterConfig) -> list[Bundle]:
    """One actor with a reward model."""
    return _on_gpus([cluster.worker_gpus])


def _engines(config: RunConfig) -> list[float]:
    """GPUs of each engine of the minimum."""
    return [engine_gpus(config)] * (config.sampling.engines.minimum if config.sampling.samples else 0)


def _scorers_and_rankers(config: RunConfig) -> list[float]:
    sampling = config.sampling
    return [pool_gpus(config, pool) for pool in (sampling.scorers, sampling.rankers) for _ in range(pool.minimum)]


def _on_gpus(actors: list[float]) -> list[Bundle]:
    return [{"GPU": gpus} for gpus in actors if gpus]


def _with_gpu(bundle: Bundle, gpus: float) -> Bundle:
    return {**bundle, "GPU": gpus} if gpus else bundle
