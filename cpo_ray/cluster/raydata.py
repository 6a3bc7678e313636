"""Ray Data as every wing that uses it wants it: quiet, and with errors that keep their type."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cpo_ray.errors import ClusterError, CpoRayError

if TYPE_CHECKING:
    from ray.data import Dataset

LOGICAL_CPUS = 0.5  # of each actor on a machine without GPUs: they wait for each other


def configure(dataset: "Dataset") -> None:
    """No progress bars or announcements of Ray Data's own; an error keeps its type on the way from actor to driver."""
    dataset.context.enable_progress_bars = False
    dataset.context.enable_operator_progress_bars = False
    dataset.context.print_on_execution_start = False
    dataset.context.raise_original_map_exception = True


@contextlib.contextmanager
def plain_errors(actor: str) -> Iterator[None]:
    """Let an error of ours that an actor raised reach the user as itself. actor: what to call one that keeps dying."""
    from ray.exceptions import RayActorError, RayTaskError

    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, CpoRayError):
            raise error.cause from None
        raise
    except RayActorError as error:
        raise ClusterError(f"{actor} could not be kept alive: {error}") from error
