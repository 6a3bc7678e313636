"""The configured loss of a batch of groups, its scores, and what it must be while the policy is the reference."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cpo_ray.config import ObjectiveConfig
from cpo_ray.objective.listwise import infonca_loss, lambda_weights, lipo_loss, listwise_loss, nca_loss
from cpo_ray.objective.losses import cpo_loss, initial_cpo_loss, log_ratio_scores, simpo_loss
from cpo_ray.objective.noise import loss_rise

FP32_NOISE = 1e-5
"""In float32: how far (nats) a continuation's log-prob may differ from the reference's, which the same code computed."""


@dataclass(frozen=True)
class Candidates:
    """What a loss reads of the groups of a microbatch besides the policy's log-probs, (B, K) each."""

    ref_logps_BK: Tensor  # nats, summed over the continuation's tokens
    ranks_BK: Tensor  # how many candidates are better: a permutation of 0..K-1 per prompt, unless some tie
    valid_BK: Tensor  # bool
    lengths_BK: Tensor  # tokens
    rewards_BK: Tensor | None  # higher is better; None if the loss reads none
    ties: bool = False  # whether candidates may have equal ranks


def group_loss(objective: ObjectiveConfig, policy_BK: Tensor, candidates: Candidates) -> Tensor:
    """The configured loss without MLE and gold floor, (B,). policy_BK: (B, K) nats, summed over the continuation's tokens."""
    valid_BK = candidates.valid_BK
    if objective.loss == "cpo":
        lengths_BK = candidates.lengths_BK if objective.length_normalised else None
        ranks_BK = candidates.ranks_BK if objective.ranked else None
        return cpo_loss(
            policy_BK,
            candidates.ref_logps_BK,
            objective.beta,
            ranks_BK,
            valid_BK,
            lengths_BK,
            objective.label_smoothing,
            ties=candidates.ties,
        )
    if objective.loss == "simpo":
        return simpo_loss(
            policy_BK, candidates.lengths_BK, objective.beta, objective.gamma, valid_BK, objective.label_smoothing
        )
    scores_BK, rewards_BK = implicit_rewards(objective, policy_BK, candidates), _rewards(candidates)
    if objective.loss == "listwise":
        return listwise_loss(scores_BK, rewards_BK, valid_BK)
    if objective.loss == "lipo":
        return lipo_loss(scores_BK, rewards_BK / objective.score_temperature, valid_BK)
    loss: Callable[..., Tensor] = infonca_loss if objective.loss == "infonca" else nca_loss
    return loss(scores_BK, rewards_BK, objective.score_temperature, valid_BK)


def implicit_rewards(objective: ObjectiveConfig, policy_BK: Tensor, candidates: Candidates) -> Tensor:
    """The scores that the loss compares, (B, K): beta * (policy - reference log-prob); for SimPO the policy's per token."""
    if objective.loss == "simpo":
        nothing_BK = torch.zeros_like(policy_BK)
        return log_ratio_scores(policy_BK, nothing_BK, objective.beta, candidates.lengths_BK)
    lengths_BK = candidates.lengths_BK if objective.length_normalised else None
    return log_ratio_scores(policy_BK, candidates.ref_logps_BK, objective.beta, lengths_BK)


@torch.no_grad()
def initial_loss(objective: ObjectiveConfig, policy_BK: Tensor, candidates: Candidates) -> Tensor:
    """What the loss is where the policy's log-probs are exactly the reference's, summed over the prompts, a scalar.

    cpo: log K, or log K! with ranks. infonca, listwise: log K. nca: 2 log 2. lipo: log 2 times the sum of its weights, for the
    order in which rounding has put the policy's equal scores. simpo has no reference: the loss of the reference's log-probs.
    """
    count, valid_BK = len(policy_BK), candidates.valid_BK
    if objective.loss == "cpo":
        tied_BK = candidates.ranks_BK if candidates.ties else None
        expected = initial_cpo_loss(valid_BK, ranked=objective.ranked, tied_ranks_BK=tied_BK)
        return torch.tensor(expected * count, dtype=torch.float64)
    if objective.loss == "lipo":
        labels_BK = _rewards(candidates) / objective.score_temperature
        scores_BK = implicit_rewards(objective, policy_BK, candidates)
        return lambda_weights(scores_BK, labels_BK, valid_BK).sum() * math.log(2)
    return group_loss(objective, candidates.ref_logps_BK, candidates).sum()


def initial_loss_tolerance(objective: ObjectiveConfig, candidates: int, expected: float = 0.0) -> float:
    """How far the first loss may differ from `initial_loss` in float32: an upper bound on the effect of rounding.

    Each softmax, and NCA's two sums together, move by at most twice what the scores move by; the ranked loss has K - 1 of them.
    A pair of LiPO moves by at most twice its weight times that. expected: the initial loss; LiPO's is log 2 times its weights.
    """
    parts = {"lipo": expected / math.log(2)}.get(objective.loss, candidates - 1 if objective.by_ranks else 1)
    return 1e-3 + 2 * parts * objective.beta * FP32_NOISE


def initial_loss_rise(objective: ObjectiveConfig, variance: float, candidates: int, expected: float) -> float:
    """By how much noise of this variance in the scores raises the first loss at most, to second order (`noise.loss_rise`).

    A logistic term adds a quarter of its argument's variance times half: of one score in NCA, whose weights sum to 2; of the
    difference of two in LiPO. expected: the initial loss.
    """
    if objective.loss == "nca":
        return variance / 4
    if objective.loss == "lipo":
        return expected / math.log(2) * variance / 4
    return loss_rise(variance, candidates, ranked=objective.by_ranks)


def _rewards(candidates: Candidates) -> Tensor:
    if candidates.rewards_BK is None:
        raise ValueError("this loss needs rewards")
    return candidates.rewards_BK
