"""What a training worker is told, and the rows it trains on."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cpo_ray.artifacts import read_table
from cpo_ray.config import ObjectiveConfig, TrainingConfig


@dataclass(frozen=True)
class Task:
    """What a worker is told. `objective` is None for MLE."""

    stage: str
    training: TrainingConfig
    objective: ObjectiveConfig | None
    model: str  # Hugging Face directory or hub id to start from
    rows: Path  # folder of Parquet: examples for MLE, groups for CPO
    limit: int | None  # the first rows only
    seed: int
    cuda: bool
    threads: int


@dataclass(frozen=True)
class Rows:
    """The training rows in memory, column by column. K = 1 for MLE: the gold alone."""

    ids: list[str]
    prompts: list[list[int]]
    candidates: list[list[list[int]]]
    kinds: list[list[str]]
    ranks: np.ndarray | None  # (rows, K)
    ref_logps: np.ndarray | None  # (rows, K)

    @classmethod
    def read(cls, task: Task) -> "Rows":
        """Read the columns that the objective needs."""
        table = read_table(task.rows).slice(0, task.limit)
        columns = {name: table[name].to_pylist() for name in table.column_names if not name.endswith("text")}
        if task.objective is None:
            golds = [[response] for response in columns["response_ids"]]
            return cls(columns["id"], columns["prompt_ids"], golds, [["gold"]] * len(golds), None, None)
        return cls(
            columns["id"],
            columns["prompt_ids"],
            columns["candidate_ids"],
            columns["candidate_kind"],
            np.array(columns["rank"]),
            np.array(columns["ref_logps"], dtype=np.float32),
        )

    def cost(self, row: int) -> int:
        """Tokens of a row, before sharing."""
        return len(self.prompts[row]) + sum(len(c) for c in self.candidates[row])
