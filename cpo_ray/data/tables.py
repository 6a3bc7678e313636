"""Reads the rows of a table: CSV or TSV, with a line of column names first."""

import csv
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO

from cpo_ray.data.lines import MAX_LINE_BYTES
from cpo_ray.errors import DataError

ENDINGS = (".csv", ".tsv")
UNDECODED = re.compile(r"[\udc80-\udcff]")  # what `surrogateescape` makes of bytes that are not UTF-8


def is_table(name: str, head: bytes) -> bool:
    """Whether a file that begins with `head` is CSV or TSV: by its ending, for a table has no marks, unless it is JSON."""
    path = PurePosixPath(name)
    endings = {path.suffix, PurePosixPath(path.stem).suffix}
    return not endings.isdisjoint(ENDINGS) and not head.lstrip().startswith((b"{", b"["))


def read_table_rows(file: IO[bytes], name: str) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Stream (line, row): the texts of a row by column, or the reason why it cannot be used. Lines count from 1.

    A row may span several lines, within quotes; `line` is its last one. Columns are separated by tabs in TSV, otherwise by
    commas, or by semicolons if the first line has no comma. Raises DataError for a file without rows or column names.
    """
    csv.field_size_limit(MAX_LINE_BYTES)
    lines = (line.decode("utf-8", "surrogateescape") for line in file)
    first = next(lines, "")
    if not first.strip():
        raise DataError(f"{name} is empty. Download it again, or name another file with --set data.path=FILE.")
    separator = _separator(name, first)
    reader = csv.reader(_chain(first, lines), delimiter=separator, strict=True)
    columns = [column.strip() for column in next(reader)]
    if "" in columns or len(set(columns)) < len(columns) or UNDECODED.search(first):
        raise DataError(
            f"{name}:1: the first line of a CSV file names the columns, each once and in UTF-8, but it is "
            f"{first.strip()[:80]!r}"
        )
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield reader.line_num, f"not CSV: {error}"
            continue
        if values:
            yield reader.line_num, _row(columns, values)


def _row(columns: list[str], values: list[str]) -> dict[str, str] | str:
    if len(values) != len(columns):
        return f"{len(values)} values, but the first line names {len(columns)} columns; is a comma or a quote missing?"
    if broken := next(filter(UNDECODED.search, values), None):
        return f"not UTF-8: in {broken[:60].encode('utf-8', 'surrogateescape')!r}"
    return dict(zip(columns, values, strict=True))


def _separator(name: str, first: str) -> str:
    if ".tsv" in name:
        return "\t"
    return ";" if ";" in first and "," not in first else ","


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest
