"""The optima of the other objectives in docs/theory.md, against the real losses, minimised over a small language."""

import itertools
import math

import pytest
import torch

from cpo_ray.objective.listwise import infonca_loss, lipo_loss, listwise_loss, nca_loss, reward_targets
from cpo_ray.objective.losses import log_ratio_scores, simpo_loss
from tests.objective.tabular import (
    DATA,
    GREEDY,
    LENGTHS,
    REFERENCE,
    greedy,
    independent,
    minimise,
    normalised,
    optimal_policy,
    outcomes,
    tempered,
)

REWARDS = torch.linspace(-1, 1, 12, dtype=torch.float64)[[7, 2, 9, 0, 4, 11, 1, 5, 8, 3, 10, 6]]
COLD = tempered(0.7)


def best_policy(loss, candidates, beta):
    """The optimum over tuples of three candidates of one distribution. loss: of scores and rewards, (B, 3) each."""
    tuples_BK = torch.tensor(list(itertools.product(range(12), repeat=3)))
    chances_B = candidates[tuples_BK].prod(dim=1)
    ref_BK, rewards_BK = REFERENCE.log()[tuples_BK], REWARDS[tuples_BK]

    def expected_loss(logps):
        return chances_B @ loss(log_ratio_scores(logps[tuples_BK], ref_BK, beta), rewards_BK)

    return minimise(expected_loss)


def assert_same(policy, formula):
    torch.testing.assert_close(policy.log(), formula.log(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("candidates", [REFERENCE, COLD])
def test_infonca_is_the_policy_of_the_rewards(candidates):
    policy, _ = best_policy(lambda s, r: infonca_loss(s, r, 0.5), candidates, 2.0)
    assert_same(policy, normalised(REFERENCE * (REWARDS / (0.5 * 2.0)).exp()))


def test_listwise_is_the_same_with_the_logarithm_of_the_scores():
    policy, _ = best_policy(lambda s, r: listwise_loss(s, r.exp()), COLD, 2.0)
    assert_same(policy, normalised(REFERENCE * (REWARDS / 2.0).exp()))


def test_nca_fixes_the_scores_themselves():
    policy, _ = best_policy(lambda s, r: nca_loss(s, r, 0.5), REFERENCE, 1.0)
    pairs = torch.tensor(list(itertools.product(range(12), repeat=2)))
    chances = REFERENCE[pairs].prod(dim=1)
    targets = [
        reward_targets(REWARDS[torch.cat([torch.full((144, 1), y), pairs], 1)], 0.5, None, torch.float64)[:, 0]
        for y in range(12)
    ]
    expected = REFERENCE * 3 * torch.stack([chances @ target for target in targets])
    assert expected.sum().item() == pytest.approx(1)
    assert_same(policy, expected)


def test_lipo_has_no_finite_optimum():
    """Scores that are the rewards, times more and more, bring the loss of every group to 0."""
    tuples_BK = torch.tensor(list(itertools.product(range(12), repeat=3)))
    rewards_BK = REWARDS[tuples_BK]
    losses = [lipo_loss(factor * rewards_BK, rewards_BK).max().item() for factor in (1, 10, 100)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1e-6


def test_simpo_forgets_the_reference():
    """pi* = exp(tokens * (log(p/q) + c) / beta), where c makes it sum to 1; REFERENCE is only where the search starts."""
    groups = independent(COLD)
    weights_B = torch.tensor([chance for chance, _ in groups], dtype=torch.float64)
    pairs_BK = torch.tensor([pair for _, pair in groups])
    for start in (REFERENCE, DATA):
        policy, _ = minimise(lambda logps: weights_B @ simpo_loss(logps[pairs_BK], LENGTHS[pairs_BK], 2.0, 0.0), start)
        shift = 2.0 * policy.log() / LENGTHS - (DATA / COLD).log()
        torch.testing.assert_close(shift, shift.mean().expand(12), rtol=0, atol=1e-6)


def test_label_smoothing_makes_the_optimum_of_a_greedy_negative_finite():
    policy, _ = optimal_policy(outcomes(DATA, greedy), 2.0, masked=True, smoothing=0.1)
    expected = REFERENCE.clone()
    expected[GREEDY] *= math.exp(-math.log(0.9 / 0.1) / 2.0)
    assert_same(policy, normalised(expected))
