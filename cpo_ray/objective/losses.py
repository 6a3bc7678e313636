"""Every loss, as a pure function of log-probs. Equations are the paper's.

CPO and ranked CPO (`cpo_loss`), SimPO (`simpo_loss`), MLE (`mle_loss`), the gold floor (`gold_floor`), and the joint loss
(`joint_loss`). Losses over rewards are in `listwise.py`.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

MASKED = -1e30  # score of a masked candidate: weight 0 in every softmax, and its gradient is 0 rather than NaN


def cpo_loss(
    policy_logps_BK: Tensor,
    ref_logps_BK: Tensor,
    beta: float,
    ranks_BK: Tensor | None = None,
    valid_BK: Tensor | None = None,
    lengths_BK: Tensor | None = None,
    label_smoothing: float = 0.0,
    *,
    ties: bool = False,
) -> Tensor:
    """Contrastive preference optimization: minus the log-likelihood that the gold (candidate 0) is the best of K.

    With ranks, minus the log-likelihood of the ranking of all K.

    With s_j = beta * (policy_logp_j - ref_logp_j):
    without ranks, the negative of equation 1: -(s_0 - logsumexp_j s_j); K = 2 is DPO (equation 5);
    with ranks, equation 6 (Plackett-Luce; equation 2 as printed is garbled): -sum_k (s_tau(k) - logsumexp_{j>=k} s_tau(j)).

    policy_logps_BK, ref_logps_BK: (B, K) nats, summed over the continuation's tokens. ranks_BK: (B, K), a permutation of
    0..K-1 per row, lower is better; with `ties`, equal ranks are allowed (see `tied_ranking_loss`). valid_BK: (B, K) bool;
    False masks a candidate, for example one that equals the gold; candidate 0 must be valid. lengths_BK: (B, K) tokens of each
    continuation; if given, s_j is per token (not in the paper), so that long candidates weigh no more than short ones.
    label_smoothing: the probability, at each choice, that another of the remaining candidates is the best, each as likely;
    for K = 2 this is conservative DPO (Mitchell 2023; not in the paper).
    Returns (B,), one loss per prompt: float64 if either input is, otherwise float32.
    """
    scores_BK = log_ratio_scores(policy_logps_BK, ref_logps_BK, beta, lengths_BK)
    if valid_BK is not None:
        scores_BK = scores_BK.masked_fill(~valid_BK, MASKED)
    if ranks_BK is None:
        return torch.logsumexp(scores_BK, dim=1) - _smoothed_gold(scores_BK, valid_BK, label_smoothing)

    if ties:
        return tied_ranking_loss(scores_BK, ranks_BK, valid_BK, label_smoothing)
    order_BK = ranks_BK.argsort(dim=1)
    sorted_BK = scores_BK.gather(1, order_BK)
    # logsumexp over the candidates k, k + 1, ...: cumulative from the worst to the best.
    remaining_BK = sorted_BK.flip(1).logcumsumexp(dim=1).flip(1)
    kept_BK = None if valid_BK is None else valid_BK.gather(1, order_BK)
    terms_BK = remaining_BK - _smoothed(sorted_BK, kept_BK, label_smoothing)
    if kept_BK is not None:
        terms_BK = terms_BK.masked_fill(~kept_BK, 0.0)
    return terms_BK.sum(dim=1)


def simpo_loss(
    policy_logps_BK: Tensor,
    lengths_BK: Tensor,
    beta: float,
    gamma: float,
    valid_BK: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """SimPO (Meng et al. 2024) for K candidates: equation 1 with s_j = beta * log-prob per token, the gold's less gamma.

    It has no reference. -log(exp(s_0 - gamma) / (exp(s_0 - gamma) + sum_{j>0} exp(s_j))); for K = 2 this is
    -log sigmoid(s_0 - s_1 - gamma), as published.
    policy_logps_BK: (B, K) nats, summed. lengths_BK: (B, K) tokens. gamma: the margin by which the gold should be ahead, on the
    scale of the scores. valid_BK, label_smoothing and the result: as in `cpo_loss`.
    """
    scores_BK = log_ratio_scores(policy_logps_BK, torch.zeros_like(policy_logps_BK), beta, lengths_BK)
    scores_BK = torch.cat([scores_BK[:, :1] - gamma, scores_BK[:, 1:]], dim=1)
    if valid_BK is not None:
        scores_BK = scores_BK.masked_fill(~valid_BK, MASKED)
    return torch.logsumexp(scores_BK, dim=1) - _smoothed_gold(scores_BK, valid_BK, label_smoothing)


def log_ratio_scores(
    policy_logps_BK: Tensor, ref_logps_BK: Tensor, beta: float, lengths_BK: Tensor | None = None
) -> Tensor:
    """s_j = beta * (policy_logp_j - ref_logp_j), per token if lengths are given: (B, K), float32 unless an input is float64."""
    dtype = torch.promote_types(torch.promote_types(policy_logps_BK.dtype, ref_logps_BK.dtype), torch.float32)
    scores_BK = beta * (policy_logps_BK.to(dtype) - ref_logps_BK.to(dtype))
    return scores_BK if lengths_BK is None else scores_BK / lengths_BK


def _smoothed(sorted_BK: Tensor, kept_BK: Tensor | None, smoothing: float) -> Tensor:
    """(1 - smoothing) of each score plus smoothing times the mean of those after it, in the order given: (B, K)."""
    if not smoothing:
        return sorted_BK
    kept_BK = torch.ones_like(sorted_BK, dtype=torch.bool) if kept_BK is None else kept_BK
    counted_BK = sorted_BK.masked_fill(~kept_BK, 0.0)
    after_BK = counted_BK.flip(1).cumsum(dim=1).flip(1) - counted_BK
    count_BK = kept_BK.flip(1).cumsum(dim=1).flip(1) - kept_BK.long()
    mixed_BK = (1 - smoothing) * sorted_BK + smoothing * after_BK / count_BK.clamp(min=1)
    return torch.where(count_BK > 0, mixed_BK, sorted_BK)


def _smoothed_gold(scores_BK: Tensor, valid_BK: Tensor | None, smoothing: float) -> Tensor:
    """The gold's score, mixed with the mean of the valid negatives': (B,)."""
    return _smoothed(scores_BK, valid_BK, smoothing)[:, 0]


def tied_ranking_loss(
    scores_BK: Tensor, ranks_BK: Tensor, valid_BK: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Plackett-Luce (equation 6) where candidates may tie: -sum_j (s_j - log(e^s_j + sum of e^s_i over the worse i)), (B,).

    Each candidate competes with those that are worse, not with those that are as good: the data does not say which of these is
    better. Without ties this is equation 6. Arguments as in `cpo_loss`, where equal ranks are ties.
    """
    worse_BKK = ranks_BK[:, None, :] > ranks_BK[:, :, None]
    if valid_BK is not None:
        worse_BKK = worse_BKK & valid_BK[:, None, :]
    rivals_BKK = worse_BKK | torch.eye(ranks_BK.shape[1], dtype=torch.bool, device=ranks_BK.device)
    chosen_BK = scores_BK
    if label_smoothing:
        count_BK = worse_BKK.sum(dim=2)
        mean_BK = scores_BK[:, None, :].masked_fill(~worse_BKK, 0.0).sum(dim=2) / count_BK.clamp(min=1)
        mixed_BK = (1 - label_smoothing) * scores_BK + label_smoothing * mean_BK
        chosen_BK = torch.where(count_BK > 0, mixed_BK, scores_BK)
    terms_BK = scores_BK[:, None, :].masked_fill(~rivals_BKK, MASKED).logsumexp(dim=2) - chosen_BK
    return (terms_BK if valid_BK is None else terms_BK.masked_fill(~valid_BK, 0.0)).sum(dim=1)


def initial_cpo_loss(valid_BK: Tensor, *, ranked: bool, tied_ranks_BK: Tensor | None = None) -> float:
    """The loss while policy = reference: the batch mean of log K, or of log K! if ranked. K counts the valid candidates.

    tied_ranks_BK: (B, K) ranks with ties. Then the mean of the sum of log(1 + worse candidates) if ranked.
    """
    if ranked and tied_ranks_BK is not None:
        return float(tied_ranking_loss(torch.where(valid_BK, 0.0, MASKED).double(), tied_ranks_BK, valid_BK).mean())
    counts = valid_BK.sum(dim=1).tolist()
    return sum(math.lgamma(k + 1) if ranked else math.log(k) for k in counts) / len(counts)


def mle_loss(gold_logps_B: Tensor, per_token: float) -> Tensor:
    """Next-token loss of stage `mle`: -(sum of log-probs) * per_token, a scalar. The joint loss has its own MLE term.

    gold_logps_B: (B,) nats, summed over the continuation's tokens. per_token: 1 / tokens of the batch for nats per token; a
    microbatch passes what makes the mean over microbatches and workers the mean over the tokens of the global batch.
    """
    return -gold_logps_B.sum() * per_token


def gold_floor(policy_gold_B: Tensor, ref_gold_B: Tensor) -> Tensor:
    """How far the gold's log-prob (nats) has fallen below the reference's; 0 if it has not fallen: (B,).

    Added to the loss, it holds the gold's likelihood up while the negatives' falls (Pal et al. 2024, DPO-Positive; not in
    the paper).
    """
    return (ref_gold_B - policy_gold_B).clamp(min=0)


def joint_loss(
    cpo_B: Tensor,
    policy_logps_BK: Tensor,
    ref_logps_BK: Tensor,
    *,
    mle_weight: float = 0.0,
    gold_floor_weight: float = 0.0,
) -> Tensor:
    """What CPO training differentiates: mle_weight * MLE + CPO + gold_floor_weight * gold floor, (B,), one loss per prompt.

    The MLE term is the negative log-likelihood of the gold as a sequence, -log pi(y|x): summed over the tokens, like the
    scores of CPO, because the paper's joint objective is over sequences. Its gradient with respect to a gold's log-prob is
    mle_weight; CPO's is at most beta (equation 1).

    cpo_B: (B,), from `cpo_loss`. policy_logps_BK, ref_logps_BK: (B, K) nats, as there. mle_weight: alpha of the paper's
    joint loss. A weight of 0 omits its term.
    """
    loss_B = cpo_B
    if mle_weight:
        loss_B = loss_B - mle_weight * policy_logps_BK[:, 0]
    if gold_floor_weight:
        loss_B = loss_B + gold_floor_weight * gold_floor(policy_logps_BK[:, 0], ref_logps_BK[:, 0])
    return loss_B


def gradient_size(loss: Callable[[Tensor], Tensor], logps_BK: Tensor) -> Tensor:
    """Sum over prompts and candidates of |d loss / d log-prob|, a scalar without gradient, also inside `torch.no_grad`.

    loss: from log-probs (B, K) to (B,), where a prompt's loss depends on its own row alone. Nothing is propagated
    beyond the log-probs.
    """
    with torch.enable_grad():
        leaf_BK = logps_BK.detach().requires_grad_()
        (gradient_BK,) = torch.autograd.grad(loss(leaf_BK).sum(), leaf_BK)
    return gradient_BK.abs().sum()


def reward_margin(scores_BK: Tensor, valid_BK: Tensor) -> Tensor:
    """Per prompt: s_gold minus the mean score of the valid negatives, (B,). 0 without any: leave it out of means."""
    negatives_BK = valid_BK.clone()
    negatives_BK[:, 0] = False
    counts_B = negatives_BK.sum(dim=1)
    mean_B = scores_BK.masked_fill(~negatives_BK, 0.0).sum(dim=1) / counts_B.clamp(min=1)
    return (scores_BK[:, 0] - mean_B).masked_fill(counts_B == 0, 0.0)


def rank_accuracy(scores_BK: Tensor, ranks_BK: Tensor, valid_BK: Tensor) -> Tensor:
    """Per prompt: the share of pairs of valid candidates whose scores are in the order of their ranks, (B,) float32.

    A tie counts half. A prompt with one valid candidate has no pair and counts as 1.
    """
    better = ranks_BK[:, :, None] < ranks_BK[:, None, :]
    pairs = better & valid_BK[:, :, None] & valid_BK[:, None, :]
    gap = scores_BK[:, :, None] - scores_BK[:, None, :]
    correct = (gap > 0).float() + 0.5 * (gap == 0).float()
    counts = pairs.sum(dim=(1, 2))
    return torch.where(counts > 0, (correct * pairs).sum(dim=(1, 2)) / counts.clamp(min=1), 1.0)


def gold_first(scores_BK: Tensor, valid_BK: Tensor) -> Tensor:
    """Per prompt: is the gold's score above every valid negative's? (B,) bool. False for a tie, True without negatives."""
    negatives_BK = scores_BK.masked_fill(~valid_BK, -torch.inf)[:, 1:]
    return scores_BK[:, 0] > negatives_BK.max(dim=1).values
