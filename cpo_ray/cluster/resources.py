"""The resources that each stage waits for before it starts, as bundles: one bundle is one process on one node."""

from cpo_ray.cluster.raydata import LOGICAL_CPUS
from cpo_ray.cluster.waiting import Bundle
from cpo_ray.config import ClusterConfig, RunConfig, TrainingConfig

STREAM_TASKS = (
    3  # two start units and may block on a snapshot; without a third that records units, streaming would deadlock
)


def training_resources(training: TrainingConfig, cluster: ClusterConfig) -> list[Bundle]:
    """One bundle per worker, as Ray Train requests them."""
    return [_with_gpu({"CPU": 1.0}, cluster.gpus_per_worker)] * training.workers


def sampling_resources(config: RunConfig) -> list[Bundle]:
    """The minimum of scorers, rankers and, for autoregressive negatives, engines; more start if the cluster has room."""
    sampling, each = config.sampling, config.cluster.gpus_per_worker
    if not each:
        return []
    engines = sampling.engines.minimum if sampling.samples else 0
    others = [{"GPU": each}] * (sampling.scorers.minimum + sampling.rankers.minimum)
    return [*others, *[{"GPU": float(sampling.engine.tensor_parallel)}] * engines]


def streaming_resources(config: RunConfig) -> list[Bundle]:
    """Trainers and sampling actors together. On CPU machines actors count too, because all of them must run at once."""
    actors, tasks = sampling_resources(config), STREAM_TASKS
    if not config.cluster.gpus_per_worker:
        sampling = config.sampling
        engines = sampling.engines.minimum if sampling.samples else 0
        tasks += engines + sampling.scorers.minimum + sampling.rankers.minimum
    return [*training_resources(config.training, config.cluster), *actors, *[{"CPU": LOGICAL_CPUS}] * tasks]


def serving_resources(config: RunConfig, models: int) -> list[Bundle]:
    """The minimum of engines for `models` models, each on `tensor_parallel` GPUs."""
    if not config.cluster.gpus_per_worker:
        return []
    return [{"GPU": 1.0}] * (config.serving.engines(models) * config.serving.engine.tensor_parallel)


def _with_gpu(bundle: Bundle, gpus: float) -> Bundle:
    return {**bundle, "GPU": gpus} if gpus else bundle
