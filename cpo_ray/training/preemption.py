"""Machines that are about to go away (a spot notice, a node that is drained): Ray Train hears of it, and we save in time.

The asking is a barrier for all workers and takes some milliseconds, so it is done now and then, not at every step.
"""

import time

import ray.train

ASK_EVERY_S = 2.0


class Departures:
    """What this training's workers have heard so far."""

    def __init__(self) -> None:
        self.next_asking = 0.0
        self.told: set[str] = set()

    def due(self) -> bool:
        """Whether it is time to ask. One worker's clock must decide for all."""
        if time.monotonic() < self.next_asking:
            return False
        self.next_asking = time.monotonic() + ASK_EVERY_S
        return True

    def ask(self) -> int:
        """How many more machines of this training are about to go away; the same answer for all workers, who all must ask."""
        info = ray.train.get_preemption_info()
        new = set(info.preempted_node_ids) - self.told if info else set()
        self.told |= new
        return len(new)
