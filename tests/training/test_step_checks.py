import pytest
import torch

from cpo_ray.config import ObjectiveConfig
from cpo_ray.training.loader import Batch
from cpo_ray.training.rows import TrainingRows
from cpo_ray.training.step_checks import check_step, initial_loss_tolerance
from cpo_ray.training.step_metrics import StepSums
from cpo_ray.training.task import Refusal
from tests.training.world import make_task


def test_the_tolerance_grows_with_beta_and_the_number_of_softmaxes():
    ranked, plain = ObjectiveConfig(beta=5.0), ObjectiveConfig(beta=0.1, ranked=False)
    assert initial_loss_tolerance("fp32", ranked, 12) == pytest.approx(1e-3 + 2 * 11 * 5 * 1e-5)
    assert initial_loss_tolerance("bf16", ranked, 12) == pytest.approx(1e-3 + 2 * 11 * 5 * 0.03)
    assert initial_loss_tolerance("bf16", plain, 2) == pytest.approx(1e-3 + 2 * 0.1 * 0.03)


@pytest.mark.e2e
@pytest.mark.usefixtures("alone")
def test_a_loss_that_is_not_finite_names_its_rows(world):
    task = make_task(world, workers=1)
    batch = Batch(TrainingRows.read(task.rows, task), [4, 5, 6], ["gold"])
    sums = StepSums(torch.device("cpu"), ["gold"])
    sums.add_mle(torch.tensor([-1.0, float("nan"), -2.0]), 9, batch.numbers)
    with pytest.raises(Refusal, match=r"step 8: the loss is not finite for rows row-5; no step was taken"):
        check_step(sums.all_reduce(), sums, batch, task, 7, batch.rows.ids.__getitem__)
