"""What a stage must find free on the cluster before it starts, as bundles: one process, one node."""

from cpo_ray.cluster.raydata import LOGICAL_CPUS
from cpo_ray.cluster.session import Bundle
from cpo_ray.config import ClusterConfig, RunConfig, TrainingConfig

STREAM_TASKS = 3  # two begin units and may wait for a policy; one records what comes before, or nothing would go on


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
    actors, tasks = sampling_needs(config), STREAM_TASKS
    if not config.cluster.gpus_per_worker:
        sampling = config.sampling
        engines = sampling.engines.minimum if sampling.negatives.autoregressive else 0
        tasks += engines + sampling.scorers.minimum + sampling.rankers.minimum
    return [*training_needs(config.training, config.cluster), *actors, *[{"CPU": LOGICAL_CPUS}] * tasks]


def serving_needs(config: RunConfig, models: int) -> list[Bundle]:
    """The engines that must be up, each on its `tensor_parallel` GPUs."""
    if not config.cluster.gpus_per_worker:
        return []
    return [{"GPU": 1.0}] * (config.serving.engines(models) * config.serving.engine.tensor_parallel)


def _with_gpu(bundle: Bundle, gpus: float) -> Bundle:
    return {**bundle, "GPU": gpus} if gpus else bundle
