"""Losses over all K candidates of a prompt and their rewards: InfoNCA, NCA, a softmax of given scores, and LiPO-lambda.

Every function takes scores `s = beta * (policy_logp - ref_logp)` (`losses.log_ratio_scores`) and rewards or labels, (B, K)
each, of which higher is better, and returns (B,) in the dtype of the scores. valid_BK: (B, K) bool; a masked candidate has no
part.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cpo_ray.objective.losses import MASKED


def infonca_loss(scores_BK: Tensor, rewards_BK: Tensor, temperature: float, valid_BK: Tensor | None = None) -> Tensor:
    """InfoNCA (Chen et al. 2024): -sum_k t_k (s_k - logsumexp_j s_j), with the targets t = softmax(reward / temperature).

    As the temperature goes to 0, t is the best candidate alone: equation 1 of the paper, and DPO for K = 2.
    """
    return _cross_entropy(scores_BK, reward_targets(rewards_BK, temperature, valid_BK, scores_BK.dtype), valid_BK)


def nca_loss(scores_BK: Tensor, rewards_BK: Tensor, temperature: float, valid_BK: Tensor | None = None) -> Tensor:
    """NCA (Chen et al. 2024): -sum_k (t_k log sigmoid(s_k) + 1/K log sigmoid(-s_k)), t as in InfoNCA, K the valid candidates.

    It is about each score itself, not about differences of scores: so the likelihood of the best candidate cannot fall while
    its lead grows.
    """
    valid_BK = torch.ones_like(scores_BK, dtype=torch.bool) if valid_BK is None else valid_BK
    targets_BK = reward_targets(rewards_BK, temperature, valid_BK, scores_BK.dtype)
    noise_BK = valid_BK.to(scores_BK.dtype) / valid_BK.sum(dim=1, keepdim=True)
    scores_BK = scores_BK.masked_fill(~valid_BK, 0.0)
    return -(targets_BK * F.logsigmoid(scores_BK) + noise_BK * F.logsigmoid(-scores_BK)).sum(dim=1)


def listwise_loss(scores_BK: Tensor, labels_BK: Tensor, valid_BK: Tensor | None = None) -> Tensor:
    """Softmax cross-entropy with shares of the labels as targets: -sum_k (label_k / sum_j label_j) log softmax(s)_k.

    labels_BK: at least 0. A prompt whose labels are all 0 has the loss 0. (ListNet's idea, Cao et al. 2007, with shares in
    place of a second softmax.)
    """
    labels_BK = labels_BK.to(scores_BK.dtype)
    if valid_BK is not None:
        labels_BK = labels_BK.masked_fill(~valid_BK, 0.0)
    total_B1 = labels_BK.sum(dim=1, keepdim=True)
    return _cross_entropy(scores_BK, torch.where(total_B1 > 0, labels_BK / total_B1, 0.0), valid_BK)


def lipo_loss(scores_BK: Tensor, labels_BK: Tensor, valid_BK: Tensor | None = None) -> Tensor:
    """LiPO-lambda (Liu et al. 2024): the sum of -w_ij log sigmoid(s_i - s_j) over all pairs with label_i > label_j.

    The weights are LambdaRank's (`lambda_weights`). Unweighted, this is DPO on every pair.
    """
    weights_BKK = lambda_weights(scores_BK, labels_BK, valid_BK)
    gaps_BKK = scores_BK[:, :, None] - scores_BK[:, None, :]
    return -(weights_BKK * F.logsigmoid(gaps_BKK)).sum(dim=(1, 2))


def lambda_weights(scores_BK: Tensor, labels_BK: Tensor, valid_BK: Tensor | None = None) -> Tensor:
    """w_ij: what swapping candidates i and j would change in the discounted cumulative gain of the policy's order, (B, K, K).

    |2^label_i - 2^label_j| * |1/log(1 + position_i) - 1/log(1 + position_j)| for pairs with label_i > label_j, otherwise 0.
    position: 1 for the highest score; equal scores in the order of the candidates. Without gradient.
    """
    scores_BK, labels_BK = scores_BK.detach(), labels_BK.to(scores_BK.dtype)
    if valid_BK is not None:
        scores_BK = scores_BK.masked_fill(~valid_BK, MASKED)
    position_BK = scores_BK.argsort(dim=1, descending=True, stable=True).argsort(dim=1) + 1
    discount_BK = 1 / torch.log1p(position_BK.to(scores_BK.dtype))
    gain_BK = torch.exp2(labels_BK)
    weights_BKK = (gain_BK[:, :, None] - gain_BK[:, None, :]).abs()
    weights_BKK = weights_BKK * (discount_BK[:, :, None] - discount_BK[:, None, :]).abs()
    pairs_BKK = labels_BK[:, :, None] > labels_BK[:, None, :]
    if valid_BK is not None:
        pairs_BKK = pairs_BKK & valid_BK[:, :, None] & valid_BK[:, None, :]
    return weights_BKK.masked_fill(~pairs_BKK, 0.0)


def reward_targets(rewards_BK: Tensor, temperature: float, valid_BK: Tensor | None, dtype: torch.dtype) -> Tensor:
    """softmax(reward / temperature) over the valid candidates, (B, K)."""
    logits_BK = rewards_BK.to(dtype) / temperature
    if valid_BK is not None:
        logits_BK = logits_BK.masked_fill(~valid_BK, MASKED)
    return logits_BK.softmax(dim=1)


def _cross_entropy(scores_BK: Tensor, targets_BK: Tensor, valid_BK: Tensor | None) -> Tensor:
    """-sum_k target_k log softmax(s)_k: (B,)."""
    if valid_BK is not None:
        scores_BK = scores_BK.masked_fill(~valid_BK, MASKED)
    return -(targets_BK * scores_BK.log_softmax(dim=1)).masked_fill(targets_BK == 0, 0.0).sum(dim=1)
