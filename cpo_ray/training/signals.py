"""Decisions that the first worker makes for all: when to save and stop, and when to query for preempted machines."""

from dataclasses import astuple, dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Signals:
    """The decisions for one step."""

    save: bool = False  # save a checkpoint after this step, then stop: the driver's machine may go away
    check_preemption: bool = False  # query after this step whether a worker's machine will go away

    def broadcast(self, device: torch.device) -> "Signals":
        """The first worker's signals, on every worker. All workers call it.

        A collective of its own: the all-reduce of the step's sums then carries metrics alone. Both come once per step, and
        this one sends two bytes while the device has nothing else to do.
        """
        flags = torch.tensor(astuple(self), dtype=torch.uint8, device=device)
        dist.broadcast(flags, src=0)
        return Signals(*map(bool, flags.tolist()))
