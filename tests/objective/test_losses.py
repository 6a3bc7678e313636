import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from cpo_ray.objective.losses import (
    cpo_loss,
    gold_first,
    gold_floor,
    gradient_size,
    initial_cpo_loss,
    joint_loss,
    mle_loss,
    rank_accuracy,
    reward_margin,
    simpo_loss,
)


def test_equation_1_by_hand():
    # s = 2 * (policy - ref) = (2, 0, -2)
    policy, ref = torch.tensor([[-1.0, -3.0, -5.0]]), torch.tensor([[-2.0, -3.0, -4.0]])
    by_hand = math.log(math.exp(2) + 1 + math.exp(-2)) - 2
    assert cpo_loss(policy, ref, beta=2.0).item() == pytest.approx(by_hand, abs=1e-6)


def test_equation_6_by_hand():
    # s = (2, 0, -2); ranks put candidate 2 second: the order is 0, 2, 1.
    policy, ref = torch.tensor([[-1.0, -3.0, -5.0]]), torch.tensor([[-2.0, -3.0, -4.0]])
    first = math.log(math.exp(2) + math.exp(-2) + 1) - 2
    second = math.log(math.exp(-2) + 1) + 2
    loss = cpo_loss(policy, ref, 2.0, ranks_BK=torch.tensor([[0, 2, 1]]))
    assert loss.item() == pytest.approx(first + second, abs=1e-6)


def test_two_candidates_are_dpo():
    policy, ref = torch.randn(6, 2), torch.randn(6, 2)
    dpo = -F.logsigmoid(0.3 * ((policy[:, 0] - ref[:, 0]) - (policy[:, 1] - ref[:, 1])))
    torch.testing.assert_close(cpo_loss(policy, ref, 0.3), dpo)
    torch.testing.assert_close(cpo_loss(policy, ref, 0.3, ranks_BK=torch.tensor([[0, 1]] * 6)), dpo)


@given(st.integers(2, 16))
def test_the_loss_starts_at_log_k(k):
    logps, valid = torch.randn(3, k), torch.ones(3, k, dtype=torch.bool)
    ranks = torch.stack([torch.cat([torch.tensor([0]), 1 + torch.randperm(k - 1)]) for _ in range(3)])
    assert cpo_loss(logps, logps, 5.0).mean().item() == pytest.approx(math.log(k), abs=1e-4)
    assert cpo_loss(logps, logps, 5.0, ranks).mean().item() == pytest.approx(math.lgamma(k + 1), abs=1e-4)
    assert initial_cpo_loss(valid, ranked=False) == pytest.approx(math.log(k))
    assert initial_cpo_loss(valid, ranked=True) == pytest.approx(math.lgamma(k + 1))


def test_the_initial_loss_at_the_paper_s_k():
    valid = torch.ones(1, 12, dtype=torch.bool)
    assert initial_cpo_loss(valid, ranked=False) == pytest.approx(2.4849, abs=1e-4)
    assert initial_cpo_loss(valid, ranked=True) == pytest.approx(19.9872, abs=1e-4)


@pytest.mark.parametrize("ranked", [False, True])
def test_a_masked_candidate_does_not_count(ranked):
    policy = torch.randn(4, 5, requires_grad=True)
    ref = torch.randn(4, 5)
    ranks = torch.tensor([[0, 3, 1, 4, 2]] * 4) if ranked else None
    valid = torch.tensor([[True, True, False, True, True]] * 4)
    kept = [0, 1, 3, 4]
    fewer = torch.tensor([[0, 2, 3, 1]] * 4) if ranked else None
    masked = cpo_loss(policy, ref, 2.0, ranks, valid)
    torch.testing.assert_close(masked, cpo_loss(policy[:, kept], ref[:, kept], 2.0, fewer))
    (gradient,) = torch.autograd.grad(masked.sum(), policy)
    assert gradient.isfinite().all()
    assert (gradient[:, 2] == 0).all()


def test_the_loss_is_0_if_all_negatives_are_masked():
    valid = torch.tensor([[True, False, False]])
    policy, ref = torch.randn(1, 3, requires_grad=True), torch.randn(1, 3)
    for ranks in (None, torch.tensor([[0, 1, 2]])):
        assert cpo_loss(policy, ref, 5.0, ranks, valid).item() == pytest.approx(0.0, abs=1e-6)
    assert initial_cpo_loss(valid, ranked=True) == 0.0


def test_metrics_by_hand():
    scores = torch.tensor([[1.0, 0.0, 4.0], [2.0, 0.0, -2.0]])
    valid = torch.tensor([[True, True, False], [True, True, True]])
    assert reward_margin(scores, valid).tolist() == pytest.approx([1 - 0, 2 - -1])
    assert reward_margin(scores[:1], torch.tensor([[True, False, False]])).tolist() == [0.0]
    assert gold_first(scores, valid).tolist() == [True, True]
    assert gold_first(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)).tolist() == [False]
    assert mle_loss(torch.tensor([-3.0, -5.0]), per_token=1 / 4).item() == 2.0


def test_scores_per_token():
    policy, ref, lengths = torch.randn(3, 4), torch.randn(3, 4), torch.tensor([[2.0, 5.0, 1.0, 3.0]] * 3)
    ranks = torch.tensor([[0, 2, 1, 3]] * 3)
    for given_ranks in (None, ranks):
        per_token = cpo_loss(policy, ref, 2.0, given_ranks, lengths_BK=lengths)
        torch.testing.assert_close(per_token, cpo_loss(policy / lengths, ref / lengths, 2.0, given_ranks))
    assert cpo_loss(ref, ref, 2.0, ranks, lengths_BK=lengths)[0].item() == pytest.approx(math.log(24), abs=1e-5)


def test_the_gold_floor_counts_only_a_fall_below_the_reference():
    policy, ref = torch.tensor([-5.0, -3.0], requires_grad=True), torch.tensor([-4.0, -4.0])
    floor = gold_floor(policy, ref)
    assert floor.tolist() == [1.0, 0.0]
    (gradient,) = torch.autograd.grad(floor.sum(), policy)
    assert gradient.tolist() == [-1.0, 0.0]


def random_logps(dtype):
    """Log-probs (3, 5) of policy and reference, ranks, and valid candidates."""
    draw = torch.Generator().manual_seed(11)
    policy, ref = (20 * torch.randn(3, 5, generator=draw, dtype=torch.float64) - 50 for _ in range(2))
    ranks = torch.stack([torch.cat([torch.tensor([0]), 1 + torch.randperm(4, generator=draw)]) for _ in range(3)])
    valid = torch.tensor([[True, True, True, False, True], [True] * 5, [True, False, False, True, True]])
    return policy.to(dtype), ref.to(dtype), ranks, valid


def losses_by_term(policy, ref, beta, ranks, valid):
    """Equations 1 and 6 over the valid candidates of each row, in the precision of the input."""
    losses = []
    for scores, order, keep in zip(beta * (policy - ref), ranks.argsort(dim=1), valid, strict=True):
        s = scores[[j for j in order.tolist() if keep[j]]]
        losses.append((s.logsumexp(0) - s[0], sum(s[k:].logsumexp(0) - s[k] for k in range(len(s)))))
    return [torch.stack(column) for column in zip(*losses, strict=True)]


def test_float64_stays_float64():
    """Within 1e-12 of the equations in float64, which float32 cannot reach."""
    policy, ref, ranks, valid = random_logps(torch.float64)
    unranked, ranked = losses_by_term(policy, ref, 0.1, ranks, valid)
    for given_ranks, expected in ((None, unranked), (ranks, ranked)):
        loss = cpo_loss(policy, ref, 0.1, given_ranks, valid)
        assert loss.dtype == torch.float64
        torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
        in_float32 = cpo_loss(policy.float(), ref.float(), 0.1, given_ranks, valid)
        assert (in_float32.double() - expected).abs().max() > 1e-9
    assert cpo_loss(policy, ref.float(), 0.1).dtype == cpo_loss(policy.float(), ref, 0.1).dtype == torch.float64
    leaf = policy.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda logps: cpo_loss(logps, ref, 0.1, ranks, valid), leaf)


def test_float32_is_computed_in_float32():
    """The same bits as the equations in float32, without a conversion in between."""
    policy, ref, ranks, _ = random_logps(torch.float32)
    scores = 0.1 * (policy - ref)
    loss = cpo_loss(policy, ref, 0.1)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, torch.logsumexp(scores, dim=1) - scores[:, 0])
    in_order = scores.gather(1, ranks.argsort(dim=1))
    terms = in_order.flip(1).logcumsumexp(dim=1).flip(1) - in_order
    assert torch.equal(cpo_loss(policy, ref, 0.1, ranks), terms.sum(dim=1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    policy, ref, ranks, valid = random_logps(dtype)
    for given_ranks in (None, ranks):
        loss = cpo_loss(policy, ref, 0.1, given_ranks, valid)
        assert loss.dtype == torch.float32
        assert torch.equal(loss, cpo_loss(policy.float(), ref.float(), 0.1, given_ranks, valid))


def test_the_joint_loss_by_hand():
    """Two prompts: the CPO losses 1 and 3, the gold's log-probs -10 and -30, under the reference -8 and -40."""
    policy, ref = torch.tensor([[-10.0, -1.0], [-30.0, -2.0]]), torch.tensor([[-8.0, -1.0], [-40.0, -2.0]])
    cpo = torch.tensor([1.0, 3.0])
    assert joint_loss(cpo, policy, ref).tolist() == [1.0, 3.0]
    assert joint_loss(cpo, policy, ref, mle_weight=0.5).tolist() == [1 + 5, 3 + 15]
    assert joint_loss(cpo, policy, ref, mle_weight=0.5, gold_floor_weight=0.25).tolist() == [1 + 5 + 0.5, 3 + 15]


def test_the_joint_loss_is_the_sum_of_its_terms_in_the_gradient_too():
    policy, ref, ranks, valid = random_logps(torch.float32)
    gradients = []
    for weights in ({}, {"mle_weight": 0.7}, {"mle_weight": 0.7, "gold_floor_weight": 0.3}):
        logps = policy.clone().requires_grad_()
        loss = joint_loss(cpo_loss(logps, ref, 0.1, ranks, valid), logps, ref, **weights).sum()
        gradients.append(torch.autograd.grad(loss, logps)[0])
    alone, joint, floored = gradients
    torch.testing.assert_close((joint - alone)[:, 0], torch.full((3,), -0.7))
    torch.testing.assert_close((floored - joint)[:, 0], -0.3 * (policy[:, 0] < ref[:, 0]).float())
    assert torch.equal(joint[:, 1:], alone[:, 1:])


def test_at_alpha_1_and_beta_1_the_mle_term_has_a_part_in_the_gradient():
    """At the start CPO's gradient is 2 * beta * (1 - 1/K) per prompt (equation 1) and the MLE term's is alpha."""
    logps = torch.full((4, 12), -40.0, requires_grad=True)
    cpo = cpo_loss(logps, logps.detach(), beta=1.0)
    (of_cpo,) = torch.autograd.grad(cpo.sum(), logps, retain_graph=True)
    (of_both,) = torch.autograd.grad(joint_loss(cpo, logps, logps.detach(), mle_weight=1.0).sum(), logps)
    of_mle = (of_both - of_cpo).abs().sum() / (of_cpo.abs().sum() + (of_both - of_cpo).abs().sum())
    assert of_mle.item() == pytest.approx(1 / (1 + 2 * 11 / 12))


def test_the_size_of_a_gradient_by_hand():
    """Of equation 1 with equal scores and K = 4: beta times (3/4 at the gold and 1/4 at each of three negatives)."""
    logps = torch.full((2, 4), -7.0)
    with torch.no_grad():  # as in a validation
        assert gradient_size(lambda policy: cpo_loss(policy, logps, 5.0), logps).item() == pytest.approx(2 * 5 * 1.5)
    assert not logps.requires_grad


def test_rank_accuracy_by_hand():
    scores, ranks = torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 5.0]]), torch.tensor([[0, 1, 2], [0, 1, 2]])
    valid = torch.ones(2, 3, dtype=torch.bool)
    # Row 0: 0>1 correct, 0>2 correct, 1>2 wrong. Row 1: a tie, and two wrong.
    assert rank_accuracy(scores, ranks, valid).tolist() == pytest.approx([2 / 3, 0.5 / 3])
    valid[:, 2] = False
    assert rank_accuracy(scores, ranks, valid).tolist() == [1.0, 0.5]
    valid[:, 1] = False
    assert rank_accuracy(scores, ranks, valid).tolist() == [1.0, 1.0]


def test_simpo_by_hand():
    """Log-probs -4, -9, -6 of 2, 3, 1 tokens and beta 2: scores -4, -6, -12. The margin takes 1 from the gold's."""
    policy, lengths = torch.tensor([[-4.0, -9.0, -6.0]]), torch.tensor([[2, 3, 1]])
    by_hand = math.log(math.exp(-5) + math.exp(-6) + math.exp(-12)) + 5
    assert simpo_loss(policy, lengths, 2.0, 1.0).item() == pytest.approx(by_hand, abs=1e-6)
    pair = simpo_loss(policy[:, :2], lengths[:, :2], 2.0, 1.0)
    assert pair.item() == pytest.approx(math.log(1 + math.exp(-(-4 - -6 - 1))), abs=1e-6)
    valid = torch.tensor([[True, False, True]])
    torch.testing.assert_close(
        simpo_loss(policy, lengths, 2.0, 1.0, valid), simpo_loss(policy[:, [0, 2]], lengths[:, [0, 2]], 2.0, 1.0)
    )
    leaf = policy.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda logps: simpo_loss(logps, lengths, 2.0, 1.0, valid, 0.1), leaf)


def test_label_smoothing_by_hand():
    """s = (2, 0, -2). Unranked: 0.8 of the gold and 0.1 of each negative. Ranked 0, 2, 1: at each place 0.2 go behind it."""
    policy, ref = torch.tensor([[-1.0, -3.0, -5.0]]), torch.tensor([[-2.0, -3.0, -4.0]])
    first = math.log(math.exp(2) + 1 + math.exp(-2)) - (0.8 * 2 + 0.2 * (0 - 2) / 2)
    second = math.log(math.exp(-2) + 1) - (0.8 * -2 + 0.2 * 0)
    assert cpo_loss(policy, ref, 2.0, label_smoothing=0.2).item() == pytest.approx(first, abs=1e-6)
    ranked = cpo_loss(policy, ref, 2.0, torch.tensor([[0, 2, 1]]), label_smoothing=0.2)
    assert ranked.item() == pytest.approx(first + second, abs=1e-6)


def test_a_smoothed_pair_is_conservative_dpo():
    policy, ref = torch.randn(6, 2), torch.randn(6, 2)
    gap = 0.3 * ((policy - ref)[:, 0] - (policy - ref)[:, 1])
    cdpo = -0.9 * F.logsigmoid(gap) - 0.1 * F.logsigmoid(-gap)
    for ranks in (None, torch.tensor([[0, 1]] * 6)):
        torch.testing.assert_close(cpo_loss(policy, ref, 0.3, ranks, label_smoothing=0.1), cdpo)


def test_smoothing_counts_only_valid_candidates():
    policy, ref, ranks, valid = random_logps(torch.float64)
    for given_ranks in (None, ranks):
        loss = cpo_loss(policy, ref, 0.1, given_ranks, valid, label_smoothing=0.3)
        for row in range(3):
            kept = [j for j in ranks[row].argsort().tolist() if valid[row, j]]
            order = None if given_ranks is None else torch.arange(len(kept))[None]
            alone = cpo_loss(policy[row : row + 1, kept], ref[row : row + 1, kept], 0.1, order, label_smoothing=0.3)
            assert loss[row].item() == pytest.approx(alone.item())
    leaf = policy.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda logps: cpo_loss(logps, ref, 0.1, ranks, valid, label_smoothing=0.3), leaf)
    alone = torch.tensor([[True, False, False, False, False]] * 3)
    assert cpo_loss(policy, ref, 0.1, ranks, alone, label_smoothing=0.3).tolist() == pytest.approx([0.0] * 3)
    assert cpo_loss(ref, ref, 0.1, ranks, label_smoothing=0.3).tolist() == pytest.approx([math.log(120)] * 3)
