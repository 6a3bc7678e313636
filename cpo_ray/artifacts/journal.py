"""A journal of a service's answers, written as they arrive, so that no request is paid for twice."""

from pathlib import Path
from typing import Any, Self

from cpo_ray.artifacts.hashing import canonical
from cpo_ray.artifacts.io import read_jsonl, write_atomically


class Journal:
    """Answers by the content of the request, appended to a JSONL file. A kill loses only the line that is being written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        _drop_torn_line(path)
        self.entries: dict[str, Any] = {row["key"]: row["value"] for row in read_jsonl(path)}
        self.file = path.open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __contains__(self, key: str) -> bool:
        return key in self.entries

    def __getitem__(self, key: str) -> Any:
        return self.entries[key]

    def add(self, key: str, value: Any) -> None:
        """Store `value`. It is handed to the operating system before this returns."""
        self.entries[key] = value
        self.file.write(canonical({"key": key, "value": value}) + "\n")
        self.file.flush()

    def sort(self) -> None:
        """Rewrite the file in key order, so that equal answers make equal files in whatever order they arrived."""
        self.file.close()
        with write_atomically(self.path) as temporary:
            lines = [canonical({"key": key, "value": value}) + "\n" for key, value in sorted(self.entries.items())]
            temporary.write_text("".join(lines), encoding="utf-8")


def _drop_torn_line(path: Path) -> None:
    """Remove an incomplete last line of a killed writer: a line appended to it would be lost too."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
