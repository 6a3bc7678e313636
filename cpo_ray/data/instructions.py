"""Reads instruction data: one JSON object per line, with configurable field names."""

import json
from collections.abc import Iterator
from typing import IO

from cpo_ray.config import FieldsConfig
from cpo_ray.data.lines import decode_line, read_lines
from cpo_ray.data.rows import BadRow, InstructionRow

EXCERPT = 60  # characters of a bad line that its message quotes


class _LineError(Exception):
    """A line that is valid JSON but not a usable row."""


def read_instructions(
    file: IO[bytes], name: str, fields: FieldsConfig, source: str
) -> Iterator[InstructionRow | BadRow]:
    """Stream the lines of `file`: an InstructionRow, or a BadRow with the reason why the line cannot be used.

    name: the file's name in messages. source: the rows' `source`. Whitespace around texts is removed and blank lines are
    skipped. Raises DataError if the file has no lines.
    """
    for number, line in read_lines(file, name):
        if line.strip():
            yield _parse(name, number, line, fields, source)


def _parse(name: str, number: int, line: bytes, fields: FieldsConfig, source: str) -> InstructionRow | BadRow:
    text = decode_line(name, number, line)
    if isinstance(text, BadRow):
        return text
    try:
        return _row(json.loads(text), fields, source)
    except json.JSONDecodeError as error:
        end = text[-EXCERPT:]
        return BadRow(name, number, f"not JSON: {error.msg} at column {error.colno}; the line ends {end!r}")
    except (_LineError, ValueError, RecursionError) as error:  # the last two: numbers too long, nesting too deep
        return BadRow(name, number, str(error))


def _row(record: object, fields: FieldsConfig, source: str) -> InstructionRow:
    """The record as a row. Raises _LineError with the reason if a field is missing, empty or not text."""
    if not isinstance(record, dict):
        raise _LineError(f"a JSON object is expected, not {type(record).__name__}")
    keys = [key for key in (fields.instruction, fields.context, fields.response, fields.category) if key is not None]
    missing = [key for key in keys if key not in record]
    if missing:
        raise _LineError(f"missing key {', '.join(missing)}; found {', '.join(record) or 'none'}")
    texts = {key: _text(key, record[key]) for key in keys}
    empty = [key for key in (fields.instruction, fields.response) if not texts[key]]
    if empty:
        raise _LineError(f"empty {', '.join(empty)}")
    return InstructionRow(
        source=source,
        category=texts[fields.category] if fields.category is not None else "",
        instruction=texts[fields.instruction],
        context=texts[fields.context] if fields.context is not None else "",
        response=texts[fields.response],
    )


def _text(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise _LineError(f"{key} must be text, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _LineError(f"{key} has half a surrogate pair, which is not a character") from None
    return value.strip()
