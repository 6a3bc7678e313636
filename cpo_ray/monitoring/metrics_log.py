"""metrics.jsonl: one line per stage and step. A step repeated after a restart appears twice; the last one counts."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from cpo_ray.artifacts import read_jsonl, write_atomically


class MetricsLog:
    """Append-only, flushed line by line. A line that a kill cut short is removed when the log is opened again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trainings: dict[str, str] = {}  # stage -> its current training, the name of a checkpoint folder
        _write_rows(path, read_jsonl(path) if path.exists() else [])

    def append(self, row: dict[str, Any]) -> None:
        """Add one line. Raises ValueError for NaN, which is not JSON."""
        stage = row.get("stage")
        label = {"training": self.trainings[stage]} if stage in self.trainings else {}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row | label, allow_nan=False) + "\n")

    def select_training(self, stage: str, folder: Path) -> None:
        """Make the training with its checkpoints in `folder` the stage's current one, and label its lines with its name.

        Lines of a training with another configuration are moved to its own checkpoint folder. They are moved back when
        that training is selected again, because it resumes from its checkpoints and does not repeat those steps.
        """
        self.trainings[stage] = folder.name
        rows = read_jsonl(self.path)
        by_training: dict[str, list[Any]] = defaultdict(list)
        for row in rows:
            if row["stage"] == stage:
                by_training[row.get("training", folder.name)].append(row)
        own = by_training.pop(folder.name, [])
        for training, others in by_training.items():
            if folder.with_name(training).is_dir():
                _write_rows(folder.with_name(training) / self.path.name, others)
        saved = folder / self.path.name
        restored = read_jsonl(saved) if not own and saved.is_file() else []
        if by_training or restored:
            _write_rows(self.path, [*(row for row in rows if row["stage"] != stage), *own, *restored])

    def drop_stage(self, stage: str) -> None:
        """Remove a stage's lines, before it starts from the beginning."""
        _write_rows(self.path, [row for row in read_jsonl(self.path) if row["stage"] != stage])


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    with write_atomically(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
