"""What a stage must find free on the cluster before it starts, as bundles: one process, one node."""

from cpo_ray.cluster import Bundle
from cpo_ray.config import ClusterConfig, RunConfig, TrainingConfig
from cpo_ray.raydata import LOGICAL_CPUS

DRAWERS = 1  # tasks that begin units: one must run


def training_needs(training: TrainingConfig, cluster: ClusterConfig) -> list[Bundle]:
    """One bundle a worker, as Ray Train asks for them."""
    return [_with_gpu({"CPU": 1.0}, cluster.gpus_per_worker)] * training.workers


def sampling_needs(config: RunConfig) -> list[Bundle]:
    """As many scorers, rankers and, for autoregressive negatives, engines as must be; more start where there is room."""
    sampling, each = config.sampling, config.cluster.gpus_per_worker
    if not each:
        return []
    engines = sampling.engines.minimum if sampling.negatives.autoregressive else 0
    others = [{"GPU": each}] * (sampling.scorers.minimum + sampling.rankers.minimum)
    return [*others, *[{"GPU": float(sampling.engine.tensor_parallel)}] * engines]


def streaming_needs(config: RunConfig) -> list[Bundle]:
    """The trainers, and beside them all that samples: actors count on CPU machines too, since all must run at once."""
    trainers, actors = training_needs(config.training, config.cluster), sampling_needs(config)
    if not config.cluster.gpus_per_worker:
        sampling = config.sampling
        engines = sampling.engines.minimum if sampling.negatives.autoregressive else 0
        count = DRAWERS + engines + sampling.scorers.minimum + sampling.rankers.minimum
        actors = [{"CPU": LOGICAL_CPUS}] * count
    return [*trainers, *actors]


def serving_needs(config: RunConfig, models: int) -> list[Bundle]:
    """The engines that must be up, each on its `tensor_parallel` GPUs."""
    if not config.cluster.gpus_per_worker:
        return []
    return [{"GPU": 1.0}] * (config.serving.engines(models) * config.serving.engine.tensor_parallel)


def _with_gpu(bundle: Bundle, gpus: float) -> Bundle:
    return {**bundle, "GPU": gpus} if gpus else bundle
