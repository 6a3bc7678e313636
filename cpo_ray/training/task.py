"""The task of a training worker: everything it needs to train one model."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cpo_ray.config import AdapterConfig, ObjectiveConfig, ScheduledSamplingConfig, TrainingConfig
from cpo_ray.inference.policy_snapshots import PolicySnapshots
from cpo_ray.records import Group


class Refusal(Exception):  # noqa: N818 - training declines to continue; nothing crashed
    """Training must not continue, and a restart would not help. The message is for the user."""


class GroupStream(Protocol):
    """Groups that are sampled while training runs, the groups of one optimizer step after another."""

    @property
    def snapshots(self) -> PolicySnapshots:
        """The policy snapshots that it samples from."""

    def groups(self, first: int) -> Iterator[tuple[int, list[Group]]]:
        """(step, its groups) from step `first` (counted from 0) to the last. Raises a CpoRayError for invalid rows."""


@dataclass(frozen=True)
class Task:
    """One training. `objective` is None for MLE; MLE with `scheduled_sampling` is PSS."""

    stage: str
    training: TrainingConfig
    objective: ObjectiveConfig | None
    scheduled_sampling: ScheduledSamplingConfig | None
    model: str  # Hugging Face directory or hub id to start from
    rows: Path | None  # folder of Parquet: examples for MLE, groups for CPO; None if they are streamed
    validation: Path | None  # the same for `training.validation_rows`
    seed: int
    cuda: bool
    threads: int
    tokenizer: Path | None = None  # directory of the tokenizer that goes with the trained model; None: that of `model`
    stream: GroupStream | None = None  # groups for CPO that are sampled while training runs
    first_batch: int = 0  # batches that earlier rounds have taken; this training takes the next ones of the same order
    adapter: AdapterConfig | None = None  # train an adapter of `model`
    continue_adapter: bool = False  # with the one that is in `model`, if there is one
    profile: Path | None = None  # folder for the profile of `training.profile_steps`

    def starts_at_reference(self, step: int) -> bool:
        """Whether the policy before `step` (from 0) is the reference that scored the step's groups: then the loss is known."""
        if self.objective is None:
            return False
        return step == 0 if self.stream is None else self.stream.snapshots.starts_at_reference(step)
