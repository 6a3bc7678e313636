import pytest
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from cpo_ray.errors import ClusterError
from cpo_ray.training.restarts import fit_while_it_gets_on, plain_losses


class Fits:
    """One fit after the other: what each raises (None: it ends well), and the step that it reaches before."""

    def __init__(self, *fits):
        self.fits, self.done, self.step = fits, 0, 0

    def __call__(self):
        error, self.step = self.fits[self.done]
        self.done += 1
        if error is not None:
            raise error
        return "the model"

    def reached(self):
        return self.step


KILLED = WorkerGroupError("a worker died", {0: RayActorError()})
LOST_IN_STARTING = ControllerError(RayActorError())


def test_losses_between_checkpoints_do_not_add_up():
    fits = Fits((KILLED, 10), (KILLED, 20), (KILLED, 25), (None, 30))
    assert fit_while_it_gets_on(fits, fits.reached, 3) == "the model"


def test_a_training_that_gets_no_further_is_given_up():
    fits = Fits((KILLED, 10), (KILLED, 10), (None, 20))
    with pytest.raises(TrainingFailedError, match="a worker died"):
        fit_while_it_gets_on(fits, fits.reached, 3)
    assert fits.done == 2


def test_zero_failures_mean_zero():
    fits = Fits((KILLED, 10), (None, 20))
    with pytest.raises(TrainingFailedError):
        fit_while_it_gets_on(fits, fits.reached, 0)
    assert fits.done == 1


@pytest.mark.parametrize("lost", [LOST_IN_STARTING, RayActorError(), OutOfMemoryError("too little")])
def test_a_loss_while_the_group_starts_is_a_failure_like_another(lost):
    fits = Fits((lost, 0), (lost, 0), (None, 20))
    assert fit_while_it_gets_on(fits, fits.reached, 2) == "the model"
    fits = Fits((lost, 0), (lost, 0), (lost, 0), (None, 20))
    with pytest.raises(type(lost)):
        fit_while_it_gets_on(fits, fits.reached, 2)


def test_lost_processes_of_ray_are_told_in_a_line():
    told = r"`cpo` lost Ray's own processes: 8 workers were killed\. The same"
    with pytest.raises(ClusterError, match=told), plain_losses("cpo"):
        raise OutOfMemoryError("8 workers were killed\nand a page of reasons")


def test_a_controllers_own_error_is_not_tried_again():
    fits = Fits((ControllerError(ValueError("a bug")), 0), (None, 20))
    with pytest.raises(ControllerError, match="a bug"):
        fit_while_it_gets_on(fits, fits.reached, 3)
