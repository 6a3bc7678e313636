"""The loss on held-out prompts, and on a batch without dropout."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from cpo_ray.training.microbatch import microbatch_loss
from cpo_ray.training.rows import TrainingRows
from cpo_ray.training.step_metrics import StepSums, step_metrics
from cpo_ray.training.task import Task


def validate(engine: Any, rows: TrainingRows, task: Task) -> dict[str, Any]:
    """The metrics of a step over all of `rows`, without the optimizer, the same on every worker. PSS is measured as MLE."""
    return step_metrics(measure(engine, rows, range(len(rows.ids)), task), task.objective)


@torch.no_grad()
def measure(engine: Any, rows: TrainingRows, numbers: Sequence[int], task: Task) -> dict[str, float]:
    """The sums of a step over the rows `numbers`, in evaluation mode: without dropout, whatever is configured."""
    task = replace(task, scheduled_sampling=None)
    workers, size = dist.get_world_size(), task.training.prompts_per_microbatch
    kinds = rows.every_kind
    sums = StepSums(engine.device, kinds)
    engine.eval()
    for start in range(0, len(numbers), workers * size):
        part = list(numbers[start : start + workers * size])
        own = part[dist.get_rank() :: workers]
        # ZeRO-3 needs all workers in each forward pass: a worker without a row repeats the first one and does not count it.
        uncounted = StepSums(engine.device, kinds)
        microbatch_loss(engine, rows, own or part[:1], task, 0, 1.0, sums if own else uncounted)
    engine.train()
    return sums.all_reduce()
