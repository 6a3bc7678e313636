"""How this wing runs on Ray Data: what each actor is given, and how its errors reach the user."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpo_ray.config import PoolConfig, RunConfig
from cpo_ray.errors import ClusterError, CpoRayError

if TYPE_CHECKING:
    from ray.data import Dataset

LOGICAL_CPUS = 0.5  # of each actor on a machine without GPUs: they wait for each other


def actor_options(config: RunConfig, pool: PoolConfig, gpus: float) -> dict[str, Any]:
    """Arguments of `map_batches` for a pool of actors that take `gpus` each where the run uses GPUs."""
    import ray
    from ray.data import ActorPoolStrategy

    options: dict[str, Any] = {"batch_format": "pyarrow", "udf_modifying_row_count": False}
    each, most = config.cluster.gpus_per_worker, pool.maximum
    if each:
        there = ray.cluster_resources().get("GPU", 0.0)
        _check_gpus(config, there)
        options["num_gpus"] = gpus
        most = most or max(pool.minimum, int(there / gpus))
    else:
        options["num_cpus"] = LOGICAL_CPUS
    return options | {"compute": ActorPoolStrategy(min_size=pool.minimum, max_size=most or pool.minimum)}


def _check_gpus(config: RunConfig, there: float) -> None:
    """Raise ClusterError where not even one actor of each sort finds its GPUs."""
    each = config.cluster.gpus_per_worker
    engine = config.sampling.engine.tensor_parallel if config.sampling.negatives.autoregressive else 0
    if there < 2 * each + engine:
        raise ClusterError(
            f"the cluster has {there:g} GPUs; sampling needs {2 * each + engine:g}: scorer {each:g} + embedder {each:g} "
            f"(cluster.gpus_per_worker) + engine {engine} (sampling.engine.tensor_parallel)"
        )


def configure(units: "Dataset") -> None:
    """No progress bars or announcements of Ray Data's own; an error keeps its type on the way from actor to driver."""
    units.context.enable_progress_bars = False
    units.context.enable_operator_progress_bars = False
    units.context.print_on_execution_start = False
    units.context.raise_original_map_exception = True


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Let an error of ours that an actor raised reach the user as itself."""
    from ray.exceptions import RayActorError, RayTaskError

    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, CpoRayError):
            raise error.cause from None
        raise
    except RayActorError as error:
        raise ClusterError(f"an actor of the sampling stage could not be kept alive: {error}") from error


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Actors have a working directory of their own."""
    embedder = Path(config.sampling.embedder)
    if not embedder.is_dir():
        return config
    sampling = config.sampling.model_copy(update={"embedder": str(embedder.resolve())})
    return config.model_copy(update={"sampling": sampling})
