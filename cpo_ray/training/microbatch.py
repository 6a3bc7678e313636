"""One microbatch: from row numbers to the scalar that is differentiated."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cpo_ray.config import ObjectiveConfig
from cpo_ray.objective.losses import gradient_size, joint_loss, mle_loss
from cpo_ray.objective.packing import PackedGroups, pack_groups
from cpo_ray.training.group_loss import Candidates, group_loss
from cpo_ray.training.rows import TrainingRows
from cpo_ray.training.scheduled_sampling import pack_copies, sample_copies, uniform_draws
from cpo_ray.training.step_metrics import StepSums
from cpo_ray.training.task import Task


def microbatch_loss(
    engine: Any,
    rows: TrainingRows,
    microbatch: Sequence[int],
    task: Task,
    step: int,
    per_token: float,
    sums: StepSums,
) -> Tensor:
    """The loss of these rows under the policy, a scalar, which DeepSpeed averages over workers and microbatches.

    per_token: for MLE alone, see `losses.mle_loss`. sums: this microbatch is added to them.
    """
    packed = pack_microbatch(engine, rows, microbatch, task, step).to(engine.device)
    sums.add(tokens=packed.tokens)
    policy_BK, router_loss = engine(packed)
    if task.objective is None:
        loss = _mle(policy_BK, rows, microbatch, per_token, sums)
    else:
        loss = _cpo(policy_BK, rows, microbatch, task.objective, sums)
    if router_loss is None:
        return loss
    sums.add(router_loss=router_loss.detach() * len(microbatch))
    return loss + task.training.router_auxiliary_loss * router_loss


def pack_microbatch(engine: Any, rows: TrainingRows, microbatch: Sequence[int], task: Task, step: int) -> PackedGroups:
    """The groups of these rows. For PSS: copies of the golds, some of whose tokens are sampled from the policy."""
    prompts, candidates = [rows.prompts[r] for r in microbatch], [rows.candidates[r] for r in microbatch]
    sampling = task.scheduled_sampling
    if task.objective is not None or sampling is None:
        return pack_groups(prompts, candidates, row_tokens=task.training.row_tokens)
    golds = [group[0] for group in candidates]
    draws = [uniform_draws(task.seed, step, r, sampling.sequences, len(rows.candidates[r][0])) for r in microbatch]

    def sample(packed: PackedGroups, uniform_ES: Tensor) -> Tensor:
        with torch.no_grad():
            sampled_ES: Tensor = engine(packed.to(engine.device), uniform_ES.to(engine.device)).cpu()
        return sampled_ES

    return pack_copies(prompts, golds, sample_copies(sample, prompts, golds, draws, sampling.probability))


def _mle(logp_BK: Tensor, rows: TrainingRows, microbatch: Sequence[int], per_token: float, sums: StepSums) -> Tensor:
    """K is 1, or the number of copies of PSS."""
    logp_B = logp_BK.mean(dim=1)
    sums.add_mle(logp_B.detach(), sum(len(rows.candidates[r][0]) for r in microbatch), list(microbatch))
    return mle_loss(logp_B, per_token)


def _cpo(
    policy_BK: Tensor,
    rows: TrainingRows,
    microbatch: Sequence[int],
    objective: ObjectiveConfig,
    sums: StepSums,
) -> Tensor:
    device = policy_BK.device
    groups = [rows.candidates[r] for r in microbatch]
    ref_BK = torch.from_numpy(rows.ref_logps[microbatch]).to(device)
    ranks_BK = torch.from_numpy(rows.ranks[microbatch]).to(device)
    # A candidate that equals the gold carries no information, and harms a ranking: mask it.
    valid_BK = torch.tensor([[k == 0 or c != group[0] for k, c in enumerate(group)] for group in groups], device=device)
    if rows.has_ties and objective.gold_against_rest:  # an answer as good as the gold is no negative
        valid_BK[:, 1:] &= ranks_BK[:, 1:] > 0
    lengths_BK = torch.tensor([[len(c) for c in group] for group in groups], device=device)
    rewards_BK = None if rows.rewards is None else torch.from_numpy(rows.rewards[microbatch]).to(device)
    candidates = Candidates(ref_BK, ranks_BK, valid_BK, lengths_BK, rewards_BK, rows.has_ties)

    def contrast(logps_BK: Tensor) -> Tensor:
        return group_loss(objective, logps_BK, candidates)

    cpo_B = contrast(policy_BK)
    kinds = [rows.kinds[r] for r in microbatch]
    sums.add_cpo(cpo_B.detach(), policy_BK.detach(), candidates, kinds, list(microbatch), objective)
    sums.add_drift(policy_BK.detach() - ref_BK, lengths_BK, valid_BK, objective)
    weights = {"mle_weight": objective.mle_weight, "gold_floor_weight": objective.gold_floor_weight}
    joint_B = joint_loss(cpo_B, policy_BK, ref_BK, **weights)
    sums.add(joint_loss=joint_B.detach().sum())
    if objective.mle_weight:
        sums.add(mle_gradient=objective.mle_weight * len(microbatch), cpo_gradient=gradient_size(contrast, policy_BK))
    return joint_B.mean()
