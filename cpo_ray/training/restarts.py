"""When a training is begun again that Ray Train has given up.

Ray Train counts failures over a whole training. On a cluster that loses a machine an hour, a long training would be given up
though it gets on between any two of them. Here they count from checkpoint to checkpoint. And Ray Train gives up at once
where a worker is lost while its process group starts, which is no more than a failure too.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError

from cpo_ray.errors import ClusterError

Result = TypeVar("Result")
LOST = (RayActorError, OutOfMemoryError)  # what Ray raises for an actor that is gone; the second where memory ran out


def fit_while_it_gets_on(fit: Callable[[], Result], reached: Callable[[], int], max_failures: int) -> Result:
    """`fit()`, which by itself survives `max_failures`, and again where it failed but had got further than before.

    reached: optimizer steps in the last checkpoint. Raises what the last fit raised: any fit where `max_failures` is 0, else
    one without a new checkpoint. Of those that lost a worker in starting, or the controller, `max_failures` in a row are borne.
    """
    fruitless = 0
    while True:
        before = reached()
        try:
            return fit()
        except (TrainingFailedError, *LOST) as error:
            fruitless = 0 if reached() > before else fruitless + 1
            borne = max_failures if lost_in_starting(error) else 0
            if max_failures == 0 or fruitless > borne:
                raise


def lost_in_starting(error: Exception) -> bool:
    """Whether Ray Train's controller was lost, or fell over a worker that was, or over what its loss did to the others."""
    cause = error.controller_failure if isinstance(error, ControllerError) else error
    return isinstance(cause, (*LOST, RayTaskError))


@contextlib.contextmanager
def plain_losses(stage: str) -> Iterator[None]:
    """Let the user hear in one line that Ray has lost what this process talks to."""
    try:
        yield
    except LOST as error:
        reason = str(error).strip().splitlines()[0]
        raise ClusterError(
            f"training `{stage}` lost Ray's own processes: {reason}. The same command goes on"
        ) from error
