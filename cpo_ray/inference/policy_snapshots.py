"""Snapshots of the policy that training publishes while it runs, and from which streamed negatives are sampled.

The snapshot for a step's negatives depends on the step alone, so results do not depend on which process is faster. It is
one to two periods old: sampling runs ahead, and training never waits for weights that it has just written. If the reference
moves with the snapshots, it is the policy at the start of the period: training waits for the period's first groups, and starts
the period at its reference.
"""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.2


@dataclass(frozen=True)
class PolicySnapshots:
    """The policy after some optimizer steps, each a Hugging Face directory below `folder`."""

    folder: Path
    every: int | None  # optimizer steps between snapshots; None: all negatives come from the reference
    steps: int  # of the whole training
    moves_reference: bool = False  # whether a snapshot also scores the groups that are sampled from it

    @property
    def lag(self) -> int:
        """How many whole periods old a snapshot is at least."""
        return 0 if self.moves_reference else 1

    def snapshot_step(self, step: int) -> int:
        """After how many optimizer steps the policy was taken that negatives of `step` (from 0) come from; 0: the reference."""
        return 0 if self.every is None else max(0, step // self.every - self.lag) * self.every

    def starts_at_reference(self, step: int) -> bool:
        """Whether the policy before `step` (from 0) is the model that scored the step's groups."""
        return step == (self.snapshot_step(step) if self.moves_reference else 0)

    def is_due(self, finished: int) -> bool:
        """Whether negatives will be sampled from the policy after `finished` steps."""
        if self.every is None or finished == 0 or finished % self.every:
            return False
        return finished + self.lag * self.every < self.steps

    def path(self, finished: int) -> Path:
        """Directory of the complete snapshot after `finished` steps."""
        return self.folder / f"after-{finished:06d}"

    def partial_path(self, finished: int) -> Path:
        """Directory in which that snapshot is written before `publish`."""
        return self.folder / f".after-{finished:06d}.partial"

    def publish(self, finished: int) -> None:
        """Move the snapshot from its partial path to its path, where samplers find it."""
        path = self.path(finished)
        if path.exists():
            shutil.rmtree(path)
        self.partial_path(finished).rename(path)

    def wait_for(self, step: int) -> str:
        """Wait for the snapshot that negatives of `step` come from, and return its directory; "" for the reference.

        There is no timeout: the caller is a Ray task, which is killed when training ends.
        """
        finished = self.snapshot_step(step)
        if finished == 0:
            return ""
        while not self.path(finished).is_dir():
            time.sleep(POLL_S)
        return str(self.path(finished))

    def first_missing(self, finished: int) -> int | None:
        """Step of the first missing snapshot without which a training that resumes after `finished` steps would wait forever.

        None if all are there.
        """
        if self.every is None:
            return None
        needed = {self.snapshot_step(step) for step in range(finished, min(finished + 2 * self.every, self.steps))}
        return next((step for step in sorted(needed) if 0 < step < finished and not self.path(step).is_dir()), None)

    def prune(self, first: int, last: int) -> None:
        """Remove the snapshots that no step from `first` on needs, and those after more than `last` steps.

        The latter are stale: they come from steps that a resumed training takes again.
        """
        for path in self.folder.glob("after-*"):
            finished = int(path.name.removeprefix("after-"))
            if finished < self.snapshot_step(first) or finished > last:
                shutil.rmtree(path)
