"""The policy on its way to the actors that sample from it, where negatives are streamed and refreshed."""

from typing import Any

import torch.distributed as dist

from cpo_ray.training.deepspeed_engine import export_final
from cpo_ray.training.task import Refusal, Task


def publish(engine: Any, task: Task, finished: int) -> None:
    """Put the policy on the shelf if negatives will be sampled from it as it is after `finished` steps.

    Every worker takes part. Policies stay as long as a checkpoint may be returned to that needs them.
    """
    if task.stream is None or not task.stream.shelf.wanted(finished):
        return
    shelf, training = task.stream.shelf, task.training
    export_final(engine, task.model, shelf.desk(finished))
    if dist.get_rank() == 0:
        shelf.put(finished)
        shelf.keep(max(0, finished - (training.keep_checkpoints + 1) * training.checkpoint_every), finished)
    dist.barrier()


def return_to(engine: Any, task: Task, finished: int) -> None:
    """Before going on after `finished` steps: forget policies of more steps, and put this one back if it is lacking.

    Raises Refusal, on every worker, where an older one is gone that the next steps' negatives are sampled from.
    """
    if task.stream is None:
        return
    shelf = task.stream.shelf
    letter = [None]
    if dist.get_rank() == 0:
        shelf.keep(0, finished)
        letter = [shelf.lacking(finished)]  # type: ignore[list-item]
    dist.broadcast_object_list(letter, src=0)
    if letter[0] is not None:
        raise Refusal(
            f"the policy of step {letter[0]}, from which the negatives after step {finished} are sampled, is gone from "
            f"{shelf.folder}. Delete this training's checkpoints to begin anew."
        )
    publish(engine, task, finished)
