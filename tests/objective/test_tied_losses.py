"""Plackett-Luce where candidates may tie, against values computed by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpo_ray.objective.losses import cpo_loss, initial_cpo_loss, tied_ranking_loss


def test_tied_candidates_compete_with_the_worse_ones_alone():
    """Scores 2, 0, -2, 1 with the ranks 0, 1, 1, 3: the first against all, the tied ones each against the last."""
    scores, ranks = torch.tensor([[2.0, 0.0, -2.0, 1.0]]), torch.tensor([[0, 1, 1, 3]])
    e = math.exp
    by_hand = math.log(e(2) + e(0) + e(-2) + e(1)) - 2
    by_hand += math.log(e(0) + e(1)) - 0 + math.log(e(-2) + e(1)) + 2
    assert tied_ranking_loss(scores, ranks).item() == pytest.approx(by_hand, abs=1e-6)
    loss = cpo_loss(scores, torch.zeros(1, 4), 1.0, ranks, ties=True)
    assert loss.item() == pytest.approx(by_hand, abs=1e-6)


@given(st.integers(2, 9), st.integers(0, 2**31))
def test_without_ties_it_is_equation_6(k, seed):
    generator = torch.Generator().manual_seed(seed)
    policy, ref = torch.randn(3, k, generator=generator), torch.randn(3, k, generator=generator)
    ranks = torch.stack([torch.randperm(k, generator=generator) for _ in range(3)])
    valid = torch.rand(3, k, generator=generator) < 0.8
    valid[:, 0] = True
    for smoothing in (0.0, 0.2):
        plain, tied = (cpo_loss(policy, ref, 2.0, ranks, valid, None, smoothing, ties=ties) for ties in (False, True))
        torch.testing.assert_close(tied, plain, atol=1e-5, rtol=1e-5)


def test_the_initial_loss_with_ties_counts_the_worse_candidates():
    """Ranks 0, 0, 2, 3, and the last masked: log 2 + log 2 + log 1; without the mask: 2 log 3 + log 2."""
    ranks, valid = torch.tensor([[0, 0, 2, 3]]), torch.tensor([[True, True, True, False]])
    assert initial_cpo_loss(valid, ranked=True, tied_ranks_BK=ranks) == pytest.approx(2 * math.log(2))
    everything = torch.ones_like(valid)
    assert initial_cpo_loss(everything, ranked=True, tied_ranks_BK=ranks) == pytest.approx(
        2 * math.log(3) + math.log(2)
    )
    logps = torch.randn(1, 4)
    loss = cpo_loss(logps, logps, 5.0, ranks, valid, ties=True)
    assert loss.item() == pytest.approx(2 * math.log(2), abs=1e-5)
    assert initial_cpo_loss(valid, ranked=False, tied_ranks_BK=ranks) == pytest.approx(math.log(3))


def test_a_masked_candidate_has_no_gradient_beside_ties():
    logps = torch.zeros(1, 3, requires_grad=True)
    valid = torch.tensor([[True, True, False]])
    cpo_loss(logps, torch.zeros(1, 3), 1.0, torch.tensor([[0, 1, 1]]), valid, ties=True).sum().backward()
    assert logps.grad.tolist()[0] == pytest.approx([-0.5, 0.5, 0.0])
