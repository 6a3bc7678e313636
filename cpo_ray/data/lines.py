"""Reads a file's numbered lines as bytes. Only \\n ends a line, because texts may contain other line separators."""

from collections.abc import Iterator
from typing import IO

from cpo_ray.data.rows import BadRow
from cpo_ray.errors import DataError

MAX_LINE_BYTES = 64 << 20  # so that a file without line ends does not fill the memory


def read_lines(file: IO[bytes], name: str) -> Iterator[tuple[int, bytes]]:
    """Stream (number from 1, line without its end), blank lines included.

    file: the text after its BOM (`files.text.open_text`). Raises DataError if it has only whitespace, or a line of more
    than MAX_LINE_BYTES.
    """
    number, blank = 0, True
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise DataError(f"{name}:{number}: a line of more than {MAX_LINE_BYTES >> 20} MiB; is this the right file?")
        blank = blank and not line.strip()
        yield number, line.rstrip(b"\r\n")
    if blank:
        raise DataError(f"{name} is empty. Download it again, or name another file with --set data.path=FILE.")


def decode_line(name: str, number: int, line: bytes) -> str | BadRow:
    """The line as text, or a BadRow if it is not UTF-8."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        return BadRow(name, number, f"not UTF-8: byte 0x{line[error.start]:02x} at position {error.start}")
