"""metrics.jsonl: one line per stage and step, for curves. A step again after a restart stands twice; the last one counts."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from cpo_ray.artifacts import read_jsonl, write_atomically


class MetricsLog:
    """Append-only, flushed line by line, and whole again after a kill in the middle of a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trainings: dict[str, str] = {}  # stage -> the training whose lines it has
        _write_rows(path, read_jsonl(path) if path.exists() else [])

    def append(self, row: dict[str, Any]) -> None:
        """Add one line. NaN is refused: it is not JSON."""
        stage = row.get("stage")
        whose = {"training": self.trainings[stage]} if stage in self.trainings else {}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row | whose, allow_nan=False) + "\n")

    def turn_to(self, stage: str, folder: Path) -> None:
        """From now on the stage's lines are those of the training whose checkpoints lie in `folder`, and say so.

        A training with another configuration may have had the stage before. Its lines are put beside its own checkpoints,
        and come back when the stage turns to it again: it would not take those steps a second time.
        """
        self.trainings[stage] = folder.name
        rows = read_jsonl(self.path)
        by_training: dict[str, list[Any]] = defaultdict(list)
        for row in rows:
            if row["stage"] == stage:
                by_training[row.get("training", folder.name)].append(row)
        own = by_training.pop(folder.name, [])
        for training, theirs in by_training.items():
            if folder.with_name(training).is_dir():
                _write_rows(folder.with_name(training) / self.path.name, theirs)
        aside = folder / self.path.name
        back = read_jsonl(aside) if not own and aside.is_file() else []
        if by_training or back:
            _write_rows(self.path, [*(row for row in rows if row["stage"] != stage), *own, *back])

    def forget(self, stage: str) -> None:
        """Drop a stage's lines: it starts from the beginning."""
        _write_rows(self.path, [row for row in read_jsonl(self.path) if row["stage"] != stage])


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    with write_atomically(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
