"""Reads a file's objects, one per row: JSON lines, a JSON array, JSON objects, Parquet, or CSV, compressed or not."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from cpo_ray.data.lines import decode_line, read_lines
from cpo_ray.data.rows import BadRow, FileFormat, Place
from cpo_ray.data.tables import is_table, read_table_rows
from cpo_ray.errors import DataError
from cpo_ray.files.compression import ContentStream, DamagedFileError, open_stream
from cpo_ray.files.json_values import BrokenJsonError, is_json_lines, read_json_values
from cpo_ray.files.text import TextContent, open_text

EXCERPT = 60  # characters of a bad line that its message quotes
PARQUET_ROWS = 256  # decoded at once
SPACE = " \t\r\n\v\f"
LOST = "The rest of the file is lost."


@dataclass(frozen=True)
class FileObject:
    """A JSON value or a Parquet row, and its place in the file: a line of JSON lines, otherwise a row; from 1."""

    file: str
    line: int | None
    row: int | None
    value: object

    @property
    def place(self) -> Place:
        """Where it stands."""
        return Place(self.file, self.line, self.row)

    def bad(self, reason: str) -> BadRow:
        """A BadRow at this place."""
        return self.place.bad(reason)


def read_objects(file: IO[bytes], name: str) -> Iterator[FileFormat | FileObject | BadRow]:
    """Stream the file's format, then its objects. The content decides the format, not the name, except for CSV and TSV.

    name: the file's name in messages. A line that is not JSON becomes a BadRow and does not affect the others; in an array,
    in Parquet and in a damaged compressed file, the rest of the file is lost with it. Memory holds one object, or
    PARQUET_ROWS rows. Raises DataError if the file has only whitespace or is in another format.
    """
    stream = open_stream(file, name)
    if stream.is_parquet:
        yield FileFormat(name, "Parquet")
        yield from _read_parquet(file, name)
    else:
        yield from _read_json(stream, name)


def _read_json(stream: ContentStream, name: str) -> Iterator[FileFormat | FileObject | BadRow]:
    try:
        content = open_text(stream, name)
        if is_table(name, content.head):
            yield FileFormat.of(name, "a table (CSV)", stream.compression)
            yield from (
                FileObject(name, line, None, value) if isinstance(value, dict) else BadRow(name, line, value)
                for line, value in read_table_rows(content.lines, name)
            )
            return
        lines = is_json_lines(content.head)
        what = "JSON lines" if lines else "a JSON array" if content.head.lstrip().startswith(b"[") else "JSON objects"
        yield FileFormat.of(name, what, stream.compression)
        yield from (_read_json_lines if lines else _read_values)(content, name)
    except DamagedFileError as error:
        yield BadRow(name, None, f"{error}. {LOST}", error.byte)


def _read_json_lines(content: TextContent, name: str) -> Iterator[FileObject | BadRow]:
    for number, line in read_lines(content.lines, name):
        text = decode_line(name, number, line) if line.strip() else ""
        if isinstance(text, BadRow):
            yield text
        elif (text := text.removeprefix("\ufeff")).strip(SPACE):  # a BOM within: files were concatenated
            yield _parse_line(name, number, text)


def _parse_line(name: str, number: int, text: str) -> FileObject | BadRow:
    try:
        return FileObject(name, number, None, json.loads(text))
    except json.JSONDecodeError as error:
        end = text[-EXCERPT:]
        reason = f"not JSON: {error.msg} at column {error.colno}; the line ends {end!r}"
        is_text = number == 1 and not text.lstrip().startswith(("{", "["))
        return BadRow(
            name, number, reason + (". If this is a table, a CSV needs the ending .csv or .tsv" if is_text else "")
        )
    except (ValueError, RecursionError) as error:  # numbers too long, nesting too deep
        return BadRow(name, number, str(error))


def _read_values(content: TextContent, name: str) -> Iterator[FileObject | BadRow]:
    try:
        for row, value in read_json_values(content.lines):
            yield FileObject(name, None, row, value)
    except BrokenJsonError as error:
        yield BadRow(name, None, f"{error}, at line {error.line}. {LOST}", row=error.row)


def _read_parquet(file: IO[bytes], name: str) -> Iterator[FileObject | BadRow]:
    if not file.seekable():
        raise DataError(f"{name} is Parquet, which needs random access. Copy it to a local file first.")
    row = 1
    try:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=PARQUET_ROWS):
            for value in batch.to_pylist():
                yield FileObject(name, None, row, value)
                row += 1
    except (pa.ArrowException, OSError) as error:
        yield BadRow(name, None, f"damaged Parquet ({_first_line(error)}). {LOST}", row=row)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def keys_of(value: Mapping[str, object]) -> str:
    """An object's keys, for messages."""
    return ", ".join(value) or "none"
