"""Preempted machines (a spot notice, a node that is drained): Ray Train reports them, so that training saves in time.

The query is a barrier for all workers and takes some milliseconds, so it is not made at every step.
"""

import time

import ray.train

POLL_EVERY_S = 2.0


class PreemptionWatch:
    """The preempted machines of this training that were reported so far."""

    def __init__(self) -> None:
        self.next_poll = 0.0
        self.reported: set[str] = set()

    def is_due(self) -> bool:
        """Whether it is time to query. Ask one worker only: all workers must query at the same step."""
        if time.monotonic() < self.next_poll:
            return False
        self.next_poll = time.monotonic() + POLL_EVERY_S
        return True

    def count_new(self) -> int:
        """How many more machines of this training will be preempted. A barrier: all workers call it, with the same result."""
        info = ray.train.get_preemption_info()
        new = set(info.preempted_node_ids) - self.reported if info else set()
        self.reported |= new
        return len(new)
