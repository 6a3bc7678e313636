"""Reads the values of a JSON array, or JSON objects one after the other, as a stream."""

import codecs
import json
from collections.abc import Iterator
from typing import IO

PIECE_BYTES = 1 << 16
MAX_VALUE_CHARACTERS = 64 << 20  # so that a file that is not such JSON does not fill the memory
SPACE = " \t\r\n"


class BrokenJsonError(Exception):
    """The rest of a file is not JSON. row: the value that cannot be read, counted from 1; line: where, counted from 1."""

    def __init__(self, reason: str, row: int, line: int) -> None:
        super().__init__(reason)
        self.row, self.line = row, line


def is_json_lines(head: bytes) -> bool:
    """Whether a file that begins so has one value per line: not if it is an array or its first line is a lone brace."""
    first, _, _ = head.lstrip().partition(b"\n")
    return not first.startswith(b"[") and first.strip() != b"{"


def read_json_values(file: IO[bytes]) -> Iterator[tuple[int, object]]:
    """Stream (row, value): the elements of the array in `file` (UTF-8), or the objects in it; rows count from 1.

    Memory holds one value. Raises BrokenJsonError for bytes that are not UTF-8, invalid or truncated JSON, and text after
    the array.
    """
    yield from _Values(file).read()


class _Values:
    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.buffer, self.position = "", 0
        self.line = 1  # of the buffer's start
        self.row = 1
        self.ended = False
        self.not_utf8 = ""  # why the text ends

    def read(self) -> Iterator[tuple[int, object]]:
        is_array = self._skip("[")
        while (next_character := self._peek()) and not (is_array and next_character == "]"):
            if is_array and self.row > 1:
                self._expect(",")
            yield self.row, self._value()
            self.row += 1
        if is_array:
            self._expect("]")
            if self._peek():
                raise self._broken("text after the end of the JSON array", self.position)

    def _value(self) -> object:
        self._peek()
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self.buffer, self.position)
                if end < len(self.buffer) or self.ended:  # a number may continue
                    self.position = end
                    return value
                reason, place = "a value without end", self.position
            except json.JSONDecodeError as error:
                reason, place = f"not JSON: {error.msg}", error.pos
            except (ValueError, RecursionError) as error:  # a number too long, nesting too deep
                raise self._broken(f"not JSON: {error}", self.position) from None
            if self.ended or len(self.buffer) - self.position > MAX_VALUE_CHARACTERS:
                raise self._broken(reason, place)
            self._fill(len(self.buffer) - self.position)

    def _peek(self) -> str:
        """The next character that is not a space; empty at the end."""
        while True:
            while self.position < len(self.buffer) and self.buffer[self.position] in SPACE:
                self.position += 1
            if self.position < len(self.buffer):
                return self.buffer[self.position]
            if self.not_utf8:
                raise self._broken("", self.position)
            if self.ended:
                return ""
            self._fill(PIECE_BYTES)

    def _skip(self, character: str) -> bool:
        found = self._peek() == character
        self.position += found
        return found

    def _expect(self, character: str) -> None:
        if not self._skip(character):
            found = "the end of the file" if self.ended and not self._peek() else repr(self._peek())
            raise self._broken(f"not JSON: {character!r} is expected, not {found}", self.position)

    def _fill(self, size: int) -> None:
        """Drop what was read, and append at least `size` characters, or all that is left."""
        self.line += self.buffer.count("\n", 0, self.position)
        pieces = [self.buffer[self.position :]]
        self.position, added = 0, 0
        while added < max(size, 1) and not self.ended:
            data = self.file.read(PIECE_BYTES)
            self.ended = not data
            try:
                pieces.append(self.decoder.decode(data, final=self.ended))
            except UnicodeDecodeError as error:
                pieces.append(error.object[: error.start].decode())
                self.not_utf8, self.ended = f"not UTF-8: byte 0x{error.object[error.start]:02x}", True
            added += len(pieces[-1])
        self.buffer = "".join(pieces)

    def _broken(self, reason: str, place: int) -> BrokenJsonError:
        if self.not_utf8:
            reason, place = self.not_utf8, len(self.buffer)
        return BrokenJsonError(reason, self.row, self.line + self.buffer.count("\n", 0, place))
