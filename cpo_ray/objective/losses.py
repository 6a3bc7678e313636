"""Losses as pure functions of log-probs. Equations are the paper's."""

import math

import torch
from torch import Tensor

MASKED = -1e30  # a score that no softmax sees, and whose gradient is 0 rather than NaN


def cpo_loss(
    policy_logps_BK: Tensor,
    ref_logps_BK: Tensor,
    beta: float,
    ranks_BK: Tensor | None = None,
    valid_BK: Tensor | None = None,
    lengths_BK: Tensor | None = None,
) -> Tensor:
    """Contrastive preference optimization: how surely the gold (candidate 0) is the best of K, or the ranking of all K.

    With s_j = beta * (policy_logp_j - ref_logp_j):
    without ranks, the negative of equation 1: -(s_0 - logsumexp_j s_j); K = 2 is DPO (equation 5);
    with ranks, equation 6 (Plackett-Luce; equation 2 as printed is garbled): -sum_k (s_tau(k) - logsumexp_{j>=k} s_tau(j)).

    policy_logps_BK, ref_logps_BK: nats, summed over the continuation's tokens. ranks_BK: a permutation per row, lower is
    better. valid_BK: False leaves a candidate out (it equals the gold, say); candidate 0 must be valid. lengths_BK: tokens
    of each continuation; given, s_j is per token (not in the paper): long candidates then weigh no more than short ones.
    Returns (B,), one loss per prompt.
    """
    scores_BK = beta * (policy_logps_BK.float() - ref_logps_BK.float())
    if lengths_BK is not None:
        scores_BK = scores_BK / lengths_BK
    if valid_BK is not None:
        scores_BK = scores_BK.masked_fill(~valid_BK, MASKED)
    if ranks_BK is None:
        return torch.logsumexp(scores_BK, dim=1) - scores_BK[:, 0]

    order_BK = ranks_BK.argsort(dim=1)
    sorted_BK = scores_BK.gather(1, order_BK)
    # logsumexp over the candidates from k on: a cumulative one from the worst to the best.
    remaining_BK = sorted_BK.flip(1).logcumsumexp(dim=1).flip(1)
    terms_BK = remaining_BK - sorted_BK
    if valid_BK is not None:
        terms_BK = terms_BK.masked_fill(~valid_BK.gather(1, order_BK), 0.0)
    return terms_BK.sum(dim=1)


def initial_cpo_loss(valid_BK: Tensor, *, ranked: bool) -> float:
    """What the loss is where policy = reference: the batch mean of log K, or log K! when ranked (K counts valid candidates)."""
    counts = valid_BK.sum(dim=1).tolist()
    return sum(math.lgamma(k + 1) if ranked else math.log(k) for k in counts) / len(counts)


def gold_floor(policy_gold_B: Tensor, ref_gold_B: Tensor) -> Tensor:
    """Nats by which the gold has become less likely than the reference has it, 0 where it has not: (B,).

    Added to the loss, it holds the gold's likelihood up while the negatives' falls (Pal et al. 2024, DPO-Positive; not in
    the paper).
    """
    return (ref_gold_B - policy_gold_B).clamp(min=0)


def mle_loss(gold_logps_B: Tensor, tokens: int) -> Tensor:
    """Next-token loss over the continuations: -sum of log-probs / tokens, a scalar, nats per token."""
    return -gold_logps_B.sum() / tokens


def reward_margin(scores_BK: Tensor, valid_BK: Tensor) -> Tensor:
    """Per prompt: s_gold minus the mean score of the valid negatives, (B,); 0 without one, which no mean should count."""
    negatives_BK = valid_BK.clone()
    negatives_BK[:, 0] = False
    counts_B = negatives_BK.sum(dim=1)
    mean_B = scores_BK.masked_fill(~negatives_BK, 0.0).sum(dim=1) / counts_B.clamp(min=1)
    return (scores_BK[:, 0] - mean_B).masked_fill(counts_B == 0, 0.0)


def rank_accuracy(scores_BK: Tensor, ranks_BK: Tensor, valid_BK: Tensor) -> Tensor:
    """Per prompt: the share of pairs of valid candidates whose scores stand in the order of their ranks, (B,).

    A tie is half a pair. A prompt with one valid candidate has no pair and counts as 1.
    """
    better = ranks_BK[:, :, None] < ranks_BK[:, None, :]
    pairs = better & valid_BK[:, :, None] & valid_BK[:, None, :]
    gap = scores_BK[:, :, None] - scores_BK[:, None, :]
    right = (gap > 0).float() + 0.5 * (gap == 0).float()
    counts = pairs.sum(dim=(1, 2))
    return torch.where(counts > 0, (right * pairs).sum(dim=(1, 2)) / counts.clamp(min=1), 1.0)


def gold_first(scores_BK: Tensor, valid_BK: Tensor) -> Tensor:
    """Per prompt: is the gold's score above every valid negative's? (B,) bool. Ties are not first; without rivals it is."""
    rivals_BK = scores_BK.masked_fill(~valid_BK, -torch.inf)[:, 1:]
    return scores_BK[:, 0] > rivals_BK.max(dim=1).values
