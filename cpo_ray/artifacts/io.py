"""Atomic writes, and the formats that artifacts are made of: JSON, JSONL, Parquet."""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cpo_ray.artifacts.hashing import canonical
from cpo_ray.errors import ArtifactError


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to. On success the file is moved to `path`, flushed to disk; on failure it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically. NaN is refused: it is not JSON."""
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_table(folder: Path) -> pa.Table:
    """All Parquet files directly in `folder`, in name order. A column that some lack (older versions) is null there."""
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise ArtifactError(f"{folder} holds no Parquet files")
    return pa.concat_tables((pq.read_table(file) for file in files), promote_options="default")


def write_table(path: Path, table: pa.Table) -> None:
    """Write one Parquet file atomically."""
    with write_atomically(path) as temporary:
        pq.write_table(table, temporary)


def read_jsonl(path: Path) -> list[Any]:
    """Every line of a JSONL file. An incomplete last line (of a killed writer) is skipped; any other bad line is an error."""
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            rows.append(json.loads(line))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            if number == len(lines):
                break
            raise ArtifactError(f"{path}:{number} is not JSON: {error}") from None
    return rows


def write_rows(path: Path, rows: Iterable[Any]) -> None:
    """Write JSONL atomically, one line per row, in the rows' order."""
    with write_atomically(path) as temporary:
        temporary.write_text("".join(canonical(row) + "\n" for row in rows), encoding="utf-8")


def sync_folder(folder: Path) -> None:
    """Flush every file below `folder` and the folder itself to disk."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
