"""Start a training again after Ray Train has given it up.

Ray Train counts failures over a whole training. On a cluster that loses a machine an hour, it would give up a long training
although there is a new checkpoint between any two losses. Here failures count from checkpoint to checkpoint. Ray Train also
gives up at once if a worker is lost while its process group starts; here that is one more failure.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError

from cpo_ray.errors import ClusterError

FitResult = TypeVar("FitResult")
LOST_ACTOR = (
    RayActorError,
    OutOfMemoryError,
)  # what Ray raises for a lost actor; the second if its node ran out of memory


def fit_with_restarts(fit: Callable[[], FitResult], last_checkpoint: Callable[[], int], max_failures: int) -> FitResult:
    """Call `fit()`, which itself survives `max_failures`; call it again if it failed after a new checkpoint.

    last_checkpoint: optimizer steps in the newest checkpoint. Raises the error of the last fit: of any fit if `max_failures`
    is 0, otherwise of one without a new checkpoint. If a worker was lost at startup, or the controller was lost,
    `max_failures` such fits in a row are allowed.
    """
    without_progress = 0
    while True:
        before = last_checkpoint()
        try:
            return fit()
        except (TrainingFailedError, *LOST_ACTOR) as error:
            without_progress = 0 if last_checkpoint() > before else without_progress + 1
            allowed = max_failures if lost_at_startup(error) else 0
            if max_failures == 0 or without_progress > allowed:
                raise


def lost_at_startup(error: Exception) -> bool:
    """Whether Ray Train's controller was lost, or failed because a worker was lost, or because of what that did to others."""
    cause = error.controller_failure if isinstance(error, ControllerError) else error
    return isinstance(cause, (*LOST_ACTOR, RayTaskError))


@contextlib.contextmanager
def lost_actors_as_cluster_error(stage: str) -> Iterator[None]:
    """Raise a ClusterError with one line for the user if Ray has lost an actor that this process calls."""
    try:
        yield
    except LOST_ACTOR as error:
        reason = str(error).strip().splitlines()[0]
        raise ClusterError(
            f"training `{stage}` lost Ray's own processes: {reason}. Run the same command again to continue"
        ) from error
