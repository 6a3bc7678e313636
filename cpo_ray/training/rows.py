"""The rows that training runs on, in memory, and the checks that they pass before the first step."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cpo_ray.artifacts import read_table
from cpo_ray.objective.cost import GroupSize, measure_group
from cpo_ray.objective.noise import scoring_noise
from cpo_ray.records import Tokens
from cpo_ray.training.filled_groups import fill_groups
from cpo_ray.training.rewards import group_matrix, name_rows, read_rewards
from cpo_ray.training.task import Refusal, Task


@dataclass(frozen=True)
class TrainingRows:
    """Rows in memory, column by column. K = 1 for MLE: the gold alone."""

    ids: list[str]
    prompts: list[Tokens]
    candidates: list[list[Tokens]]
    kinds: list[list[str]]
    ranks: np.ndarray  # (rows, K) how many candidates are better; (rows, 0) for MLE, which needs none
    ref_logps: np.ndarray  # the same shape, nats
    noise: float | None = None  # of the scores, measured in sampling, nat per sqrt(token); None if it was not
    rewards: np.ndarray | None = None  # (rows, K) float32, higher is better; None if the loss reads none

    @classmethod
    def read(cls, folder: Path, task: Task, limit: int | None = None) -> "TrainingRows":
        """Read the columns that the objective needs. Raises Refusal for rows that cannot be trained on."""
        table = read_table(folder).slice(0, limit)
        columns = {name: table[name].to_pylist() for name in table.column_names if not name.endswith("text")}
        if task.objective is not None:
            return cls.from_groups(columns, task)
        golds = [[response] for response in columns["response_ids"]]
        none = np.empty((len(golds), 0))
        rows = cls(columns["id"], columns["prompt_ids"], golds, [["gold"]] * len(golds), none, none)
        rows.check_lengths(task.training.row_tokens)
        return rows

    @classmethod
    def from_groups(cls, columns: dict[str, list[Any]], task: Task) -> "TrainingRows":
        """Groups, column by column. Raises Refusal for groups that cannot be trained on.

        Ranked answers make groups of different K; the shorter ones are filled up (`fill_groups`).
        """
        spreads, scored = columns.get("ref_spread"), columns["candidate_ids"]
        columns = fill_groups(columns)
        rows = cls(
            columns["id"],
            columns["prompt_ids"],
            columns["candidate_ids"],
            columns["candidate_kind"],
            group_matrix(columns["rank"], columns["id"], "ranks"),
            group_matrix(columns["ref_logps"], columns["id"], "reference log-probs").astype(np.float32),
            None if spreads is None else scoring_noise(spreads, scored),
            None if task.objective is None else read_rewards(columns, task.objective),
        )
        rows.check_scores()
        rows.check_lengths(task.training.row_tokens)
        return rows

    @property
    def every_kind(self) -> list[str]:
        """The kinds of candidates that occur, sorted."""
        return sorted({kind for names in self.kinds for kind in names})

    @property
    def mean_gold_tokens(self) -> float:
        """Mean length of the golds in tokens, EOS included."""
        return sum(len(group[0]) for group in self.candidates) / len(self.candidates)

    @cached_property
    def has_ties(self) -> bool:
        """Whether some candidates of a group are equally good."""
        return bool((np.sort(self.ranks, axis=1) != np.arange(self.ranks.shape[1])).any())

    def check_scores(self) -> None:
        """Raise Refusal unless reference scores are finite and ranks count the better candidates, none for the gold."""
        not_finite = ~np.isfinite(self.ref_logps).all(axis=1)
        if not_finite.any():
            raise Refusal(
                f"reference log-probs are not finite in rows {self._names(not_finite)}: make the groups again"
            )
        k = self.ranks.shape[1]
        ordered = np.sort(self.ranks, axis=1)
        first = np.array([np.searchsorted(row, row) for row in ordered]).reshape(ordered.shape)  # the first of each tie
        invalid = (ordered != first).any(axis=1) | (self.ranks[:, 0] != 0)
        if invalid.any():
            raise Refusal(
                f"ranks must be a permutation of 0..{k - 1} with the gold first, or count the better candidates if some tie; "
                f"they do not in rows {self._names(invalid)}"
            )

    def check_lengths(self, row_tokens: int | None) -> None:
        """Raise Refusal, naming the row and the key, if a group is longer than a packed row."""
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
        """The size of each row's group, measured at first access."""
        return _Sizes(self)

    def _names(self, selected: np.ndarray) -> str:
        return name_rows(self.ids, selected)


class _Sizes(dict[int, GroupSize]):
    def __init__(self, rows: TrainingRows) -> None:
        super().__init__()
        self.rows = rows

    def __missing__(self, row: int) -> GroupSize:
        self[row] = measure_group(self.rows.prompts[row], self.rows.candidates[row])
        return self[row]
