"""Checks of a step's sums before the optimizer moves: everything is finite, and the policy starts at the reference."""

import math
from collections.abc import Callable

import torch.distributed as dist

from cpo_ray.config import ObjectiveConfig
from cpo_ray.training.loader import Batch
from cpo_ray.training.step_metrics import StepSums
from cpo_ray.training.task import Refusal, Task

# How far the log-prob (nats) of a continuation may differ from the reference's, which the same code computed in other batches.
# bf16 rounds hidden states to a relative 2^-8. Over tens of tokens that adds up to hundredths of a nat. The mean over a batch
# averages out more of it than the bound below assumes.
SCORING_NOISE = {"fp32": 1e-5, "bf16": 0.03}


def check_step(
    totals: dict[str, float], own: StepSums, batch: Batch, task: Task, step: int, describe: Callable[[int], str]
) -> None:
    """Raise Refusal if a loss or a gradient is not finite, or if the first CPO loss is not that of the reference.

    totals: `own` (this worker's sums) over all workers. Every worker has the same totals, so all refuse or none.
    describe: the name of one of this worker's rows whose loss is not finite, and what is known of the cause.
    """
    if totals["nonfinite_losses"]:
        gathered: list[list[str]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(gathered, [describe(row) for row in own.nonfinite_rows()[:10]])
        names = [name for found in gathered for name in found]
        raise Refusal(f"step {step + 1}: the loss is not finite for rows {', '.join(names[:10])}; no step was taken")
    if totals["nonfinite_gradients"]:
        raise Refusal(
            f"step {step + 1}: a gradient is not finite, though every loss is; no step was taken. The batch's rows: "
            f"{', '.join(batch.ids[:10])}{' ...' if len(batch.ids) > 10 else ''}. "
            "Try training.precision fp32 or a lower learning rate."
        )
    if task.objective is not None and step == 0:
        tolerance = initial_loss_tolerance(task.training.precision, task.objective, batch.rows.ranks.shape[1])
        _check_initial_loss(totals["loss"] / len(batch.ids), totals["expected_loss"] / len(batch.ids), tolerance)


def initial_loss_tolerance(precision: str, objective: ObjectiveConfig, candidates: int) -> float:
    """How far the first CPO loss may differ from log K (or log K!): an upper bound on the effect of noise in the scores.

    Each softmax moves by at most twice what its scores move by; the ranked loss has K - 1 of them.
    """
    softmaxes = candidates - 1 if objective.ranked else 1
    return 1e-3 + 2 * softmaxes * objective.beta * SCORING_NOISE[precision]


def _check_initial_loss(loss: float, expected: float, tolerance: float) -> None:
    if not math.isclose(loss, expected, rel_tol=0, abs_tol=tolerance):
        raise Refusal(
            f"the first CPO loss is {loss:.4f} but must be {expected:.4f} (tolerance {tolerance:g}): the policy is not "
            "the reference that scored the groups. Were they made with another model, tokenizer, template or dtype? "
            "Make the groups again from this reference."
        )
