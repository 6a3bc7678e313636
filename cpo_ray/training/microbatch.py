"""One microbatch: from row numbers to the scalar that is differentiated."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cpo_ray.config import ObjectiveConfig
from cpo_ray.objective.losses import cpo_loss, gold_floor
from cpo_ray.objective.packing import PackedGroups, pack_groups
from cpo_ray.training.scheduled_sampling import pack_copies, sample_copies, uniform_draws
from cpo_ray.training.step_metrics import Tally
from cpo_ray.training.task import Rows, Task


def microbatch_loss(
    engine: Any, rows: Rows, microbatch: Sequence[int], task: Task, step: int, part: float, tally: Tally
) -> Tensor:
    """The loss of these rows under the policy, which DeepSpeed averages over workers and microbatches.

    part: what a sum over this microbatch is multiplied by to become its share of the mean over the batch's gold tokens.
    """
    packed = pack_microbatch(engine, rows, microbatch, task, step).to(engine.device)
    tally.add(tokens=packed.tokens)
    policy_BK = engine(packed)
    return (
        _mle(policy_BK, rows, microbatch, part, tally)
        if task.objective is None
        else _cpo(policy_BK, rows, microbatch, task.objective, part, tally)
    )


def pack_microbatch(engine: Any, rows: Rows, microbatch: Sequence[int], task: Task, step: int) -> PackedGroups:
    """The groups of these rows; in PSS, copies of the golds that the policy itself has partly rewritten."""
    prompts, candidates = [rows.prompts[r] for r in microbatch], [rows.candidates[r] for r in microbatch]
    sampling = task.scheduled_sampling
    if task.objective is not None or sampling is None:
        return pack_groups(prompts, candidates, row_tokens=task.training.row_tokens)
    golds = [group[0] for group in candidates]
    draws = [uniform_draws(task.seed, step, r, sampling.sequences, len(rows.candidates[r][0])) for r in microbatch]

    def choose(packed: PackedGroups, uniform_ES: Tensor) -> Tensor:
        with torch.no_grad():
            sampled_ES: Tensor = engine(packed.to(engine.device), uniform_ES.to(engine.device)).cpu()
        return sampled_ES

    return pack_copies(prompts, golds, sample_copies(choose, prompts, golds, draws, sampling.probability))


def _mle(logp_BK: Tensor, rows: Rows, microbatch: Sequence[int], part: float, tally: Tally) -> Tensor:
    """Next-token loss; K is 1, or the number of PSS's copies."""
    logp_B = logp_BK.mean(dim=1)
    tally.add_mle(logp_B.detach(), sum(len(rows.candidates[r][0]) for r in microbatch), list(microbatch))
    return -logp_B.sum() * part


def _cpo(
    policy_BK: Tensor, rows: Rows, microbatch: Sequence[int], objective: ObjectiveConfig, part: float, tally: Tally
) -> Tensor:
    """Equation 1 or 2, joined by what the configuration adds."""
    device = policy_BK.device
    groups = [rows.candidates[r] for r in microbatch]
    ref_BK = torch.from_numpy(rows.ref_logps[microbatch]).to(device)
    ranks_BK = torch.from_numpy(rows.ranks[microbatch]).to(device)
    # A candidate that equals the gold says nothing, and harms a ranking.
    valid_BK = torch.tensor([[k == 0 or c != group[0] for k, c in enumerate(group)] for group in groups], device=device)
    lengths_BK = None
    if objective.length_normalised:
        lengths_BK = torch.tensor([[len(c) for c in group] for group in groups], device=device)
    ranks_or_none = ranks_BK if objective.ranked else None
    loss_B = cpo_loss(policy_BK, ref_BK, objective.beta, ranks_or_none, valid_BK, lengths_BK)
    kinds = [rows.kinds[r] for r in microbatch]
    tally.add_cpo(loss_B.detach(), policy_BK.detach(), ref_BK, valid_BK, ranks_BK, kinds, list(microbatch), objective)
    loss = loss_B.mean()
    if objective.mle_weight:
        loss = loss - objective.mle_weight * policy_BK[:, 0].sum() * part
    if objective.gold_floor_weight:
        loss = loss + objective.gold_floor_weight * gold_floor(policy_BK[:, 0], ref_BK[:, 0]).mean()
    return loss
