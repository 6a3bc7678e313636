"""metrics.jsonl: one line per stage and step, for curves. A step again after a restart stands twice; the last one counts."""

import json
from pathlib import Path
from typing import Any

from cpo_ray.artifacts import read_jsonl, write_atomically


class MetricsLog:
    """Append-only, flushed line by line, and whole again after a kill in the middle of a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rewrite(read_jsonl(path) if path.exists() else [])

    def append(self, row: dict[str, Any]) -> None:
        """Add one line. NaN is refused: it is not JSON."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

    def forget(self, stage: str) -> None:
        """Drop a stage's lines: it starts from the beginning."""
        self._rewrite([row for row in read_jsonl(self.path) if row["stage"] != stage])

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        with write_atomically(self.path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
