"""The shelf: where a training puts its policy now and then, and the actors that sample from it find it.

Which policy a step's negatives are sampled from depends on the step alone, so results do not depend on who is faster. It is
one to two periods old: sampling works ahead, and training never waits for the weights that it has just made.
"""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.2


@dataclass(frozen=True)
class PolicyShelf:
    """Policies as they were after some optimizer steps, each a Hugging Face directory below `folder`."""

    folder: Path
    every: int | None  # steps between policies; None: negatives come from the reference all the time
    steps: int  # of the whole training

    def age_at(self, step: int) -> int:
        """How many steps the policy had taken that the negatives of `step` (from 0) are sampled from; 0: the reference."""
        return 0 if self.every is None else max(0, step // self.every - 1) * self.every

    def wanted(self, finished: int) -> bool:
        """Whether the policy after `finished` steps will be sampled from."""
        if self.every is None or finished == 0 or finished % self.every:
            return False
        return finished + self.every < self.steps

    def place(self, age: int) -> Path:
        """Where the policy that has taken `age` steps stands, once it is whole."""
        return self.folder / f"after-{age:06d}"

    def desk(self, age: int) -> Path:
        """Where it is written before that."""
        return self.folder / f".after-{age:06d}.partial"

    def put(self, age: int) -> None:
        """Let the actors see what has been written to the desk."""
        place = self.place(age)
        if place.exists():
            shutil.rmtree(place)
        self.desk(age).rename(place)

    def wait_at(self, step: int) -> str:
        """The folder to sample the negatives of `step` from, once it is there; "" for the reference.

        The wait ends with the training: whoever waits is a task of its own, and dies with it.
        """
        age = self.age_at(step)
        if age == 0:
            return ""
        while not self.place(age).is_dir():
            time.sleep(POLL_S)
        return str(self.place(age))

    def lacking(self, finished: int) -> int | None:
        """Which policy is gone that a training that goes on after `finished` steps would wait for in vain; None for none."""
        if self.every is None:
            return None
        ages = {self.age_at(step) for step in range(finished, min(finished + 2 * self.every, self.steps))}
        return next((age for age in sorted(ages) if 0 < age < finished and not self.place(age).is_dir()), None)

    def keep(self, first: int, last: int) -> None:
        """Remove the policies that no step from `first` on needs, and those of more than `last` steps: another life's."""
        for place in self.folder.glob("after-*"):
            age = int(place.name.removeprefix("after-"))
            if age < self.age_at(first) or age > last:
                shutil.rmtree(place)
