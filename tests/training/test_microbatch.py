"""From log-probs to the loss of a microbatch and its metrics, without a model."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cpo_ray.config import ObjectiveConfig
from cpo_ray.training.microbatch import microbatch_loss
from cpo_ray.training.rows import TrainingRows
from cpo_ray.training.step_metrics import StepSums, step_metrics
from tests.training.world import make_task

GROUP = [[5, 6, 0], [7, 0], [8, 9, 9, 0], [5, 0]]


class Engine:
    """An engine whose policy gives every candidate the log-prob -10, as the reference does."""

    device = torch.device("cpu")

    def __init__(self, router_loss=None):
        self.router_loss = router_loss

    def __call__(self, packed):
        self.logps_BK = torch.full((2, 4), -10.0, requires_grad=True)
        return self.logps_BK, self.router_loss


def loss_and_metrics(objective, router_loss=None, **settings):
    rows = TrainingRows(
        ["a", "b"], [[1, 2]] * 2, [GROUP] * 2, [["gold", *["batch"] * 3]] * 2, np.arange(4)[None].repeat(2, 0),
        np.full((2, 4), -10.0, np.float32),
    )  # fmt: skip
    engine, sums = Engine(router_loss), StepSums(torch.device("cpu"), ["gold", "batch"])
    task = make_task(Path("world"), objective=objective, **settings)
    loss = microbatch_loss(engine, rows, [0, 1], task, 0, 1.0, sums)
    (gradient_BK,) = torch.autograd.grad(loss, engine.logps_BK)
    totals = dict(zip(sums.index, sums.sums.tolist(), strict=True))
    return loss.item(), gradient_BK, step_metrics(totals, objective)


def test_the_joint_loss_adds_the_negative_log_likelihood_of_the_sequence():
    """Equation 1 with beta 1 and K = 4: log 4, and a gradient of 3/4 at the gold and 1/4 at each negative; alpha 1 adds 10."""
    loss, gradient_BK, metrics = loss_and_metrics(ObjectiveConfig(ranked=False, beta=1.0, mle_weight=1.0))
    assert loss == pytest.approx(np.log(4) + 10)
    assert metrics["loss"] == pytest.approx(np.log(4))  # the CPO term alone, which the first step's check needs
    assert metrics["joint_loss"] == pytest.approx(loss)
    assert metrics["mle_gradient_share"] == pytest.approx(1 / (1 + 6 / 4))
    expected = torch.tensor([[-1 - 3 / 4, 1 / 4, 1 / 4, 1 / 4]] * 2) / 2  # the mean over two prompts
    torch.testing.assert_close(gradient_BK, expected)


def test_cpo_alone_has_no_joint_loss():
    loss, _, metrics = loss_and_metrics(ObjectiveConfig(ranked=False, beta=1.0))
    assert loss == pytest.approx(np.log(4))
    assert metrics.keys() & {"joint_loss", "mle_gradient_share"} == set()


def test_the_routers_auxiliary_loss_is_added_with_its_coefficient():
    """log 4 of CPO, and a tenth of an auxiliary loss of 2; the metrics have it without the coefficient."""
    objective = ObjectiveConfig(ranked=False, beta=1.0)
    loss, _, metrics = loss_and_metrics(objective, torch.tensor(2.0), router_auxiliary_loss=0.1)
    assert loss == pytest.approx(np.log(4) + 0.2)
    assert metrics["router_loss"] == pytest.approx(2.0)
    assert metrics["loss"] == pytest.approx(np.log(4))  # which the first step's check needs
    assert "router_loss" not in loss_and_metrics(objective)[2]
