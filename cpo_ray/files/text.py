"""Opens UTF-8 text: without its byte order mark (BOM), from a compressed file too. Names other encodings."""

import io
import shlex
from dataclasses import dataclass

from cpo_ray.errors import DataError
from cpo_ray.files.compression import DECOMPRESS, ContentStream

BUFFER_BYTES = 1 << 16
BOM = b"\xef\xbb\xbf"
MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
TAR = slice(257, 262)  # where a tar archive has its magic


@dataclass(frozen=True)
class TextContent:
    """A text file, opened after its BOM. `head` is the beginning of the text, of unspecified length."""

    lines: "io.BufferedReader[ContentStream]"
    head: bytes


def open_text(stream: ContentStream, name: str) -> TextContent:
    """Open a stream (`compression.open_stream`) that should be UTF-8.

    name: the file's name in messages. Raises DataError, with the command that converts it, for UTF-16, UTF-32 and tar, and
    for Parquet; DamagedFileError like ContentStream.
    """
    lines = io.BufferedReader(stream, BUFFER_BYTES)
    head = lines.peek(BUFFER_BYTES)
    if head.startswith(b"PAR1"):
        within = f" within {stream.compression}: decompress it" if stream.compression else ", where text is needed"
        raise DataError(f"{name} is Parquet{within}.")
    if head[TAR] == b"ustar":
        raise DataError(
            f"{name} is a tar archive, which is not read. Unpack it (tar -xf {shlex.quote(name)}) and name its file or folder."
        )
    if encoding := _other_encoding(head):
        raise DataError(
            f"{name} is {encoding}, not UTF-8. Convert it: {_conversion(name, encoding, stream.compression)}, and name the "
            "new file."
        )
    if head.startswith(BOM):
        lines.read(len(BOM))
        head = head[len(BOM) :]
    return TextContent(lines, head)


def _other_encoding(head: bytes) -> str | None:
    """The encoding if it is UTF-16 or UTF-32: by its BOM, or by the zero bytes of its first two characters."""
    for mark, encoding in MARKS.items():
        if head.startswith(mark):
            return encoding
    zeros = [byte == 0 for byte in head[:4]]
    if zeros == [False, True, False, True]:
        return "UTF-16LE"
    return "UTF-16BE" if zeros == [True, False, True, False] else None


def _conversion(name: str, encoding: str, compression: str | None) -> str:
    convert = f"iconv -f {encoding} -t UTF-8"
    target = f"> {shlex.quote(f'{name}.utf8')}"
    if compression:
        return f"{DECOMPRESS[compression]} {shlex.quote(name)} | {convert} {target}"
    return f"{convert} {shlex.quote(name)} {target}"
