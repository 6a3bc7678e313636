"""databricks-dolly-15k: one JSON object per line, with instruction, context, response and category."""

import json
from collections.abc import Iterator
from pathlib import Path

from cpo_ray.data.rows import BadRow, Row
from cpo_ray.errors import DataError

FIELDS = ("instruction", "context", "response", "category")
EXCERPT = 60  # characters of a bad line that its message shows


class _LineError(Exception):
    """A line is JSON but no row."""


def read_dolly(path: Path) -> Iterator[Row | BadRow]:
    """Stream the file's lines: a Row, or a BadRow that says what is wrong with the line.

    White space around texts is removed; blank lines are passed over. Raises DataError where the file cannot be read
    or holds no line at all.
    """
    lines = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    lines += 1
                    yield _parse(path, number, line.rstrip(b"\r\n"))
    except FileNotFoundError:
        raise DataError(
            f"no data file {path}. Download databricks-dolly-15k.jsonl (Hugging Face: databricks/databricks-dolly-15k) "
            "and name it with --set data.path=FILE."
        ) from None
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}. Name a JSONL file with --set data.path=FILE."
        ) from None
    if not lines:
        raise DataError(f"{path} is empty. Download it again, or name another file with --set data.path=FILE.")


def _parse(path: Path, number: int, line: bytes) -> Row | BadRow:
    try:
        return _row(json.loads(line.decode("utf-8")))
    except UnicodeDecodeError as error:
        return BadRow(str(path), number, f"not UTF-8: byte 0x{line[error.start]:02x} at position {error.start}")
    except json.JSONDecodeError as error:
        end = line.decode("utf-8")[-EXCERPT:]
        return BadRow(str(path), number, f"not JSON: {error.msg} at column {error.colno}; the line ends {end!r}")
    except (_LineError, ValueError, RecursionError) as error:  # the last two: numbers too long, nesting too deep
        return BadRow(str(path), number, str(error))


def _row(record: object) -> Row:
    """The record as a Row. Raises _LineError with the reason where a field is not what it must be."""
    if not isinstance(record, dict):
        raise _LineError(f"a JSON object is expected, not {type(record).__name__}")
    missing = [name for name in FIELDS if name not in record]
    if missing:
        raise _LineError(f"missing key {', '.join(missing)}; found {', '.join(record) or 'none'}")
    for name in FIELDS:
        if not isinstance(record[name], str):
            raise _LineError(f"{name} must be text, not {type(record[name]).__name__}")
        try:
            record[name].encode()
        except UnicodeEncodeError:
            raise _LineError(f"{name} holds half a surrogate pair, which is not a character") from None
    instruction, context, response, category = (record[name].strip() for name in FIELDS)
    empty = [name for name, text in [("instruction", instruction), ("response", response)] if not text]
    if empty:
        raise _LineError(f"empty {', '.join(empty)}")
    return Row("dolly", category, instruction, context, response)
