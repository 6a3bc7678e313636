"""A file's lines as bytes, numbered. A line's end is \\n alone: texts may hold other line separators."""

from collections.abc import Iterator
from typing import IO

from cpo_ray.data.rows import BadRow
from cpo_ray.errors import DataError

LONGEST = 64 << 20  # bytes; a file without line ends must not fill the memory


def read_lines(file: IO[bytes], name: str) -> Iterator[tuple[int, bytes]]:
    """Stream (number from 1, line without its end), blank lines included.

    Raises DataError where the file holds nothing but white space, or a line of more than LONGEST bytes.
    """
    number, blank = 0, True
    while line := file.readline(LONGEST + 1):
        number += 1
        if len(line) > LONGEST:
            raise DataError(f"{name}:{number}: a line of more than {LONGEST >> 20} MiB; is this the file you meant?")
        blank = blank and not line.strip()
        yield number, line.rstrip(b"\r\n")
    if blank:
        raise DataError(f"{name} is empty. Fetch it again, or name another file with --set data.path=FILE.")


def decode_line(name: str, number: int, line: bytes) -> str | BadRow:
    """The line's text, or what is wrong with it."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        return BadRow(name, number, f"not UTF-8: byte 0x{line[error.start]:02x} at position {error.start}")
