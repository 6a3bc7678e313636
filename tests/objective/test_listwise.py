import math

import pytest
import torch
import torch.nn.functional as F

from cpo_ray.objective.listwise import infonca_loss, lambda_weights, lipo_loss, listwise_loss, nca_loss
from cpo_ray.objective.losses import cpo_loss

# Scores (2, 0, -2); rewards log 3, log 2, log 1, whose softmax is (3, 2, 1) / 6.
SCORES = torch.tensor([[2.0, 0.0, -2.0]], dtype=torch.float64)
REWARDS = torch.tensor([[math.log(3), math.log(2), 0.0]], dtype=torch.float64)
LOG_SUM = math.log(math.exp(2) + 1 + math.exp(-2))
LOSSES = {
    "infonca": lambda s, r, valid=None: infonca_loss(s, r, 0.7, valid),
    "nca": lambda s, r, valid=None: nca_loss(s, r, 0.7, valid),
    "listwise": listwise_loss,
    "lipo": lipo_loss,
}


def log_sigmoid(x):
    return -math.log(1 + math.exp(-x))


def test_infonca_by_hand():
    by_hand = LOG_SUM - (3 * 2 + 2 * 0 + 1 * -2) / 6
    assert infonca_loss(SCORES, REWARDS, 1.0).item() == pytest.approx(by_hand)
    squared = LOG_SUM - (9 * 2 + 4 * 0 + 1 * -2) / 14  # temperature 1/2 squares the weights
    assert infonca_loss(SCORES, REWARDS, 0.5).item() == pytest.approx(squared)


def test_infonca_without_temperature_is_equation_1():
    policy, ref = torch.randn(4, 5), torch.randn(4, 5)
    rewards = torch.tensor([[1.0, 0.4, 0.3, 0.2, 0.1]] * 4)
    torch.testing.assert_close(infonca_loss(2 * (policy - ref), rewards, 1e-3), cpo_loss(policy, ref, 2.0))


def test_nca_by_hand():
    best = -(3 * log_sigmoid(2) + 2 * log_sigmoid(0) + 1 * log_sigmoid(-2)) / 6
    every = -(log_sigmoid(-2) + log_sigmoid(0) + log_sigmoid(2)) / 3
    assert nca_loss(SCORES, REWARDS, 1.0).item() == pytest.approx(best + every)


def test_nca_of_a_pair_without_temperature():
    """-log sigmoid(s_w) - (log sigmoid(-s_w) + log sigmoid(-s_l)) / 2, as published for preferences."""
    scores = torch.randn(6, 2)
    pair = -F.logsigmoid(scores[:, 0]) - F.logsigmoid(-scores).mean(dim=1)
    torch.testing.assert_close(nca_loss(scores, torch.tensor([[1.0, 0.0]] * 6), 1e-3), pair)


def test_listwise_by_hand():
    by_hand = LOG_SUM - (0.5 * 2 + 0.5 * -2)
    assert listwise_loss(SCORES, torch.tensor([[3.0, 0.0, 3.0]])).item() == pytest.approx(by_hand)
    assert listwise_loss(SCORES, torch.zeros(1, 3)).item() == 0.0


def test_lipo_by_hand():
    """Labels 0, 2, 1: gains 1, 4, 2. The scores put them on positions 1, 2, 3, with discounts 1/log 2, 1/log 3, 1/log 4."""
    first, second, third = (1 / math.log(1 + position) for position in (1, 2, 3))
    by_hand = (
        -3 * (first - second) * log_sigmoid(0 - 2)
        - 1 * (first - third) * log_sigmoid(-2 - 2)
        - 2 * (second - third) * log_sigmoid(0 + 2)
    )
    assert lipo_loss(SCORES, torch.tensor([[0.0, 2.0, 1.0]])).item() == pytest.approx(by_hand)


def test_lambda_weights_of_equal_labels_and_equal_scores():
    assert lambda_weights(SCORES, torch.ones(1, 3)).tolist() == [[[0.0] * 3] * 3]
    weights = lambda_weights(
        torch.zeros(1, 2), torch.tensor([[0.0, 1.0]])
    )  # equal scores in the order of the candidates
    assert weights.tolist() == [[[0.0, 0.0], [pytest.approx(1 / math.log(2) - 1 / math.log(3)), 0.0]]]


@pytest.mark.parametrize("name", LOSSES)
def test_a_masked_candidate_does_not_count(name):
    scores, rewards = torch.randn(4, 5, requires_grad=True), torch.rand(4, 5)
    valid = torch.tensor([[True, True, False, True, True]] * 4)
    kept = [0, 1, 3, 4]
    masked = LOSSES[name](scores, rewards, valid)
    torch.testing.assert_close(masked, LOSSES[name](scores[:, kept], rewards[:, kept]))
    (gradient,) = torch.autograd.grad(masked.sum(), scores)
    assert gradient.isfinite().all()
    assert (gradient[:, 2] == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_in_float64(name):
    draw = torch.Generator().manual_seed(3)
    scores = torch.randn(3, 5, generator=draw, dtype=torch.float64, requires_grad=True)
    rewards = torch.rand(3, 5, generator=draw, dtype=torch.float64)
    valid = torch.tensor([[True] * 5, [True, False, True, True, True], [True, True, True, True, False]])
    assert LOSSES[name](scores, rewards, valid).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda s: LOSSES[name](s, rewards, valid), scores)


@pytest.mark.parametrize("name", LOSSES)
def test_a_prompt_without_valid_negatives_teaches_no_preference(name):
    scores = torch.tensor([[1.5, 9.0]], requires_grad=True)
    loss = LOSSES[name](scores, torch.tensor([[1.0, 0.0]]), torch.tensor([[True, False]]))
    expected = -log_sigmoid(1.5) - log_sigmoid(-1.5) if name == "nca" else 0.0
    assert loss.item() == pytest.approx(expected)
