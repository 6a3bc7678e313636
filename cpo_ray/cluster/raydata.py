"""Ray Data settings shared by all wings: no console output of its own, and errors that keep their type."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cpo_ray.errors import ClusterError, CpoRayError

if TYPE_CHECKING:
    from ray.data import Dataset

LOGICAL_CPUS = 0.5  # per actor on a machine without GPUs: actors mostly wait for each other


def configure(dataset: "Dataset") -> None:
    """Turn off Ray Data's progress bars and messages; let an actor's error reach the driver with its type."""
    dataset.context.enable_progress_bars = False
    dataset.context.enable_operator_progress_bars = False
    dataset.context.print_on_execution_start = False
    dataset.context.raise_original_map_exception = True


@contextlib.contextmanager
def plain_errors(actor: str) -> Iterator[None]:
    """Re-raise a CpoRayError from inside an actor without Ray's wrapper. `actor` names the actor if it keeps dying."""
    from ray.exceptions import RayActorError, RayTaskError

    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, CpoRayError):
            raise error.cause from None
        raise
    except RayActorError as error:
        raise ClusterError(f"{actor} died repeatedly: {error}") from error
