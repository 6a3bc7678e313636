import pytest
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from cpo_ray.errors import ClusterError
from cpo_ray.training.restarts import fit_with_restarts, lost_actors_as_cluster_error


class Fits:
    """Fits in order: the error that each raises (None: it succeeds), and the step of the checkpoint that it reaches before."""

    def __init__(self, *fits):
        self.fits, self.done, self.step = fits, 0, 0

    def __call__(self):
        error, self.step = self.fits[self.done]
        self.done += 1
        if error is not None:
            raise error
        return "the model"

    def last_checkpoint(self):
        return self.step


KILLED = WorkerGroupError("a worker died", {0: RayActorError()})
LOST_AT_STARTUP = ControllerError(RayActorError())


def test_failures_are_counted_from_the_last_checkpoint():
    fits = Fits((KILLED, 10), (KILLED, 20), (KILLED, 25), (None, 30))
    assert fit_with_restarts(fits, fits.last_checkpoint, 3) == "the model"


def test_a_training_without_a_new_checkpoint_is_given_up():
    fits = Fits((KILLED, 10), (KILLED, 10), (None, 20))
    with pytest.raises(TrainingFailedError, match="a worker died"):
        fit_with_restarts(fits, fits.last_checkpoint, 3)
    assert fits.done == 2


def test_zero_failures_means_no_restart():
    fits = Fits((KILLED, 10), (None, 20))
    with pytest.raises(TrainingFailedError):
        fit_with_restarts(fits, fits.last_checkpoint, 0)
    assert fits.done == 1


@pytest.mark.parametrize("lost", [LOST_AT_STARTUP, RayActorError(), OutOfMemoryError("too little")])
def test_a_worker_lost_at_startup_counts_as_a_failure(lost):
    fits = Fits((lost, 0), (lost, 0), (None, 20))
    assert fit_with_restarts(fits, fits.last_checkpoint, 2) == "the model"
    fits = Fits((lost, 0), (lost, 0), (lost, 0), (None, 20))
    with pytest.raises(type(lost)):
        fit_with_restarts(fits, fits.last_checkpoint, 2)


def test_lost_ray_processes_are_reported_in_one_line():
    message = r"`cpo` lost Ray's own processes: 8 workers were killed\. Run the same"
    with pytest.raises(ClusterError, match=message), lost_actors_as_cluster_error("cpo"):
        raise OutOfMemoryError("8 workers were killed\nand a page of reasons")


def test_an_error_of_the_controller_itself_is_not_retried():
    fits = Fits((ControllerError(ValueError("a bug")), 0), (None, 20))
    with pytest.raises(ControllerError, match="a bug"):
        fit_with_restarts(fits, fits.last_checkpoint, 3)
