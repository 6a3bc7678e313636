"""What a training worker is told, and the rows it trains on."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cpo_ray.artifacts import read_table
from cpo_ray.config import ObjectiveConfig, ScheduledSamplingConfig, TrainingConfig
from cpo_ray.inference.policy_snapshots import PolicyShelf
from cpo_ray.objective.cost import GroupSize, measure_group
from cpo_ray.records import Group


class Refusal(Exception):  # noqa: N818 - it says no, it is not a fault
    """Training must not go on, and a restart would change nothing. The message is for the user."""


class GroupStream(Protocol):
    """Groups that are sampled while training goes on, one optimizer step's after another's."""

    @property
    def shelf(self) -> PolicyShelf:
        """Where the policies that it samples from are put."""

    def groups(self, first: int) -> Iterator[tuple[int, list[Group]]]:
        """(step, its groups) from step `first` (counted from 0) to the last. Raises a CpoRayError for bad rows."""


@dataclass(frozen=True)
class Task:
    """What a worker is told. `objective` is None for MLE, and `scheduled_sampling` makes that PSS."""

    stage: str
    training: TrainingConfig
    objective: ObjectiveConfig | None
    scheduled_sampling: ScheduledSamplingConfig | None
    model: str  # Hugging Face directory or hub id to start from
    rows: Path | None  # folder of Parquet: examples for MLE, groups for CPO; None where they are streamed
    validation: Path | None  # the same for `training.validation_rows`
    seed: int
    cuda: bool
    threads: int
    stream: GroupStream | None = None  # groups for CPO that are sampled meanwhile
    profile: Path | None = None  # where the profile of `training.profile_steps` goes


@dataclass(frozen=True)
class Rows:
    """Rows in memory, column by column. K = 1 for MLE: the gold alone."""

    ids: list[str]
    prompts: list[list[int]]
    candidates: list[list[list[int]]]
    kinds: list[list[str]]
    ranks: np.ndarray  # (rows, K); for MLE, which needs none, (rows, 0)
    ref_logps: np.ndarray  # the same

    @classmethod
    def read(cls, folder: Path, task: Task, limit: int | None = None) -> "Rows":
        """Read the columns that the objective needs. Raises Refusal for rows that cannot be trained on."""
        table = read_table(folder).slice(0, limit)
        columns = {name: table[name].to_pylist() for name in table.column_names if not name.endswith("text")}
        if task.objective is not None:
            return cls.of_groups(columns, task)
        golds = [[response] for response in columns["response_ids"]]
        none = np.empty((len(golds), 0))
        rows = cls(columns["id"], columns["prompt_ids"], golds, [["gold"]] * len(golds), none, none)
        rows.check_lengths(task.training.row_tokens)
        return rows

    @classmethod
    def of_groups(cls, columns: dict[str, list[Any]], task: Task) -> "Rows":
        """Groups, column by column. Raises Refusal for groups that cannot be trained on."""
        rows = cls(
            columns["id"],
            columns["prompt_ids"],
            columns["candidate_ids"],
            columns["candidate_kind"],
            _matrix(columns["rank"], columns["id"], "ranks"),
            _matrix(columns["ref_logps"], columns["id"], "reference log-probs").astype(np.float32),
        )
        rows.check_scores()
        rows.check_lengths(task.training.row_tokens)
        return rows

    @property
    def every_kind(self) -> list[str]:
        """The kinds of candidates that occur, sorted."""
        return sorted({kind for names in self.kinds for kind in names})

    def check_scores(self) -> None:
        """Raise Refusal for reference scores that are not finite and ranks that are no permutation with the gold first."""
        broken = ~np.isfinite(self.ref_logps).all(axis=1)
        if broken.any():
            raise Refusal(f"reference log-probs are not finite in rows {self._names(broken)}: make the groups again")
        k = self.ranks.shape[1]
        crooked = (np.sort(self.ranks, axis=1) != np.arange(k)).any(axis=1) | (self.ranks[:, 0] != 0)
        if crooked.any():
            raise Refusal(
                f"ranks must be a permutation of 0..{k - 1} with the gold first; they are not in rows {self._names(crooked)}"
            )

    def check_lengths(self, row_tokens: int | None) -> None:
        """Raise Refusal, naming the row and the knob, for a group that is longer than a packed row."""
        if row_tokens is None:
            return
        for row in range(len(self.ids)):
            tokens = self.sizes[row].tokens
            if tokens > row_tokens:
                raise Refusal(
                    f"the group of row {self.ids[row]} needs {tokens} tokens, but training.row_tokens is {row_tokens}: raise "
                    "it, or lower data.max_prompt_tokens, data.max_response_tokens or the number of negatives"
                )

    @cached_property
    def sizes(self) -> "_Sizes":
        """Each row's size, measured when it is first asked for."""
        return _Sizes(self)

    def _names(self, where: np.ndarray) -> str:
        names = [self.ids[row] for row in np.flatnonzero(where)]
        return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


class _Sizes(dict[int, GroupSize]):
    def __init__(self, rows: Rows) -> None:
        super().__init__()
        self.rows = rows

    def __missing__(self, row: int) -> GroupSize:
        self[row] = measure_group(self.rows.prompts[row], self.rows.candidates[row])
        return self[row]


def _matrix(column: list[list[float]], ids: list[str], what: str) -> np.ndarray:
    """(rows, K). Raises Refusal where K differs."""
    k = len(column[0]) if column else 0
    for row, values in enumerate(column):
        if len(values) != k:
            raise Refusal(
                f"row {ids[row]} has {len(values)} {what}, row {ids[0]} has {k}: K must be one for all groups"
            )
    return np.array(column).reshape(len(column), k)
