"""The loss on prompts that are not trained on."""

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from cpo_ray.training.microbatch import microbatch_loss
from cpo_ray.training.step_metrics import Tally, step_metrics
from cpo_ray.training.task import Rows, Task


@torch.no_grad()
def validate(engine: Any, rows: Rows, task: Task) -> dict[str, Any]:
    """A step's metrics over all of `rows`, without the optimizer. Every worker returns the same. PSS is judged as MLE is."""
    task = replace(task, scheduled_sampling=None)
    workers, size = dist.get_world_size(), task.training.prompts_per_microbatch
    kinds = rows.every_kind
    tally = Tally(engine.device, kinds)
    turns = -(-len(rows.ids) // (workers * size))
    everything = list(range(len(rows.ids)))
    for turn in range(turns):
        part = everything[turn * workers * size : (turn + 1) * workers * size]
        mine = part[dist.get_rank() :: workers]
        # Under ZeRO-3 all workers must compute together: one without a row repeats the first, uncounted.
        spare = Tally(engine.device, kinds)
        microbatch_loss(engine, rows, mine or part[:1], task, 0, 1.0, tally if mine else spare)
    return step_metrics(tally.over_workers(), task.objective)
