"""Publish policy snapshots for the actors that sample negatives from them while training runs."""

from typing import Any

import torch.distributed as dist

from cpo_ray.training.deepspeed_engine import export_policy
from cpo_ray.training.task import Refusal, Task


def publish_snapshot(engine: Any, task: Task, finished: int) -> None:
    """Publish the policy after `finished` steps if negatives will be sampled from it. Every worker calls this.

    Snapshots are kept as long as training may resume from a checkpoint that needs them.
    """
    if task.stream is None or not task.stream.snapshots.is_due(finished):
        return
    snapshots, training = task.stream.snapshots, task.training
    export_policy(engine, task, snapshots.partial_path(finished), whole=True)
    if dist.get_rank() == 0:
        snapshots.publish(finished)
        snapshots.prune(max(0, finished - (training.keep_checkpoints + 1) * training.checkpoint_every), finished)
    dist.barrier()


def restore_snapshots(engine: Any, task: Task, finished: int) -> None:
    """Before training resumes after `finished` steps: remove later snapshots, and publish the one of this step if it is due.

    Raises Refusal, on every worker, if an older snapshot is missing that the negatives of the next steps come from.
    """
    if task.stream is None:
        return
    snapshots = task.stream.snapshots
    message = [None]
    if dist.get_rank() == 0:
        snapshots.prune(0, finished)
        message = [snapshots.first_missing(finished)]  # type: ignore[list-item]
    dist.broadcast_object_list(message, src=0)
    if message[0] is not None:
        raise Refusal(
            f"the policy snapshot of step {message[0]}, from which the negatives after step {finished} are sampled, is "
            f"missing from {snapshots.folder}. Delete the checkpoints of this training to start it over."
        )
    publish_snapshot(engine, task, finished)
