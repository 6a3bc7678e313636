"""Opens a file by its content: gzip, bzip2, xz, zstd or uncompressed, whatever its name.

The stream keeps track of the position in the stored file, so that damage can be reported with its byte offset.
"""

import bz2
import io
import lzma
import re
import shlex
import zlib
from collections.abc import Callable
from typing import IO, Any

import pyarrow as pa

from cpo_ray.errors import DataError

INPUT_BYTES = 1024  # compressed bytes read at once; small, because they may decompress to tens of megabytes of zeros
ZSTD_OUTPUT_BYTES = 4096  # decompressed at once; what precedes damage in such a piece is lost
MAGIC_BYTES = 6
BZIP2 = re.compile(rb"BZh[1-9]")
DECOMPRESS = {"gzip": "gzip -dc", "bzip2": "bzip2 -dc", "xz": "xz -dc", "zstd": "zstd -dc"}
"""The command that decompresses a file to standard output, by compression."""
ARCHIVES = {
    "7z": (b"7z\xbc\xaf\x27\x1c", "7z x -so {file} | zstd > {target}"),
    "zip": (b"PK\x03\x04", "unzip -p {file} | zstd > {target}"),
    "rar": (b"Rar!\x1a\x07", "unrar p -inul {file} | zstd > {target}"),
}
"""Archives that are not read: (first bytes, the command that converts one)."""


class DamagedFileError(Exception):
    """A compressed file that is truncated or does not decompress. The message gives the reason; `byte` is the offset."""

    def __init__(self, reason: str, byte: int) -> None:
        super().__init__(reason)
        self.byte = byte


def open_stream(file: IO[bytes], name: str) -> "ContentStream":
    """The decompressed content of `file`, which is read from its start; it need not be seekable.

    name: the file's name in messages. Raises DataError for an archive that has to be converted first (7z, zip, rar), with
    the command.
    """
    head = b""
    while len(head) < MAGIC_BYTES and (more := file.read(MAGIC_BYTES - len(head))):
        head += more
    for kind, (magic, _) in ARCHIVES.items():
        if head.startswith(magic):
            raise DataError(f"{name} is a {kind} archive, which is not read. Convert it: {conversion(name, kind)}")
    if head.startswith(b"\x1f\x8b"):
        return _Members(head, file, "gzip", lambda: zlib.decompressobj(wbits=31))
    if BZIP2.match(head):
        return _Members(head, file, "bzip2", bz2.BZ2Decompressor)
    if head.startswith(b"\xfd7zXZ\x00"):
        return _Members(head, file, "xz", lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ))
    if head.startswith(b"\x28\xb5\x2f\xfd") or re.match(rb"[\x50-\x5f]\x2a\x4d\x18", head):  # a frame, a skippable one
        return _Zstd(head, file)
    return ContentStream(head, file)


def conversion(name: str, kind: str) -> str:
    """The command that converts the archive `name` to a file that is read. kind: a key of ARCHIVES."""
    _, command = ARCHIVES[kind]
    return command.format(file=shlex.quote(name), target=shlex.quote(f"{name.removesuffix(f'.{kind}')}.zst"))


class ContentStream(io.RawIOBase):
    """The content of a file that is not compressed; the subclasses decompress.

    `byte` is the number of stored bytes read so far, `compression` a key of DECOMPRESS or None. `read(size)` returns at
    least one byte except at the end, and raises DamagedFileError. `head`: the first bytes, taken from `file` already.
    """

    compression: str | None = None

    def __init__(self, head: bytes, file: IO[bytes]) -> None:
        self._head, self._file = head, file
        self.byte = 0

    @property
    def is_parquet(self) -> bool:
        """Whether the file begins as Parquet. Call it before reading."""
        return self._head.startswith(b"PAR1")

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the beginning of `buffer`; 0 only at the end. Raises DamagedFileError."""
        data = self._next(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _next(self, size: int) -> bytes:
        """Up to `size` bytes of content, empty only at the end."""
        return self._stored(size)

    def _stored(self, size: int) -> bytes:
        head, self._head = self._head[:size], self._head[size:]
        data = head + self._file.read(size - len(head)) if len(head) < size else head
        self.byte += len(data)
        return data


class _Members(ContentStream):
    """gzip, bzip2 or xz; the file may consist of several streams (multistream dumps, concatenated files).

    Memory holds one or two blocks of bzip2 (900 kB each). A block of bzip2 is returned only after its checksum was
    verified; gzip and xz have their checksums at the end.
    """

    def __init__(self, head: bytes, file: IO[bytes], compression: str, make_decompressor: Callable[[], Any]) -> None:
        super().__init__(head, file)
        self.compression = compression
        self._make_decompressor = make_decompressor
        self._decompressor = make_decompressor()
        self._has_input = False  # whether the current stream has received bytes
        self._unverified = b""  # output whose checksum may come only with the next input
        self._verified = bytearray()

    def _next(self, size: int) -> bytes:
        while not self._verified:
            compressed = self._next_input()
            if not compressed:
                break
            self._decompress(compressed)
        data = bytes(self._verified[:size])
        del self._verified[:size]
        return data

    def _next_input(self) -> bytes:
        compressed = b""
        if self._decompressor.eof:
            compressed = self._decompressor.unused_data
            self._decompressor, self._has_input = self._make_decompressor(), False
        if not compressed:
            compressed = self._stored(INPUT_BYTES)
        while not self._has_input and compressed and not compressed.strip(b"\0"):
            compressed = self._stored(INPUT_BYTES)  # padding after a stream
        if self._has_input and not compressed:
            raise DamagedFileError(
                f"the file ends in the middle of its {self.compression} data: it is truncated", self.byte
            )
        return compressed if self._has_input else compressed.lstrip(b"\0")

    def _decompress(self, compressed: bytes) -> None:
        self._has_input = True
        try:
            data = self._decompressor.decompress(compressed)
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise DamagedFileError(
                f"damaged {self.compression} data at or shortly before this byte ({str(error).lower()})", self.byte
            ) from None
        self._verified += self._unverified
        self._unverified = data
        if self._decompressor.eof or self.compression != "bzip2":
            self._verified += self._unverified
            self._unverified = b""


class _Zstd(ContentStream):
    """zstd through pyarrow, which also reads several frames."""

    compression = "zstd"

    def __init__(self, head: bytes, file: IO[bytes]) -> None:
        super().__init__(head, file)
        self._source = _StoredBytes(self._stored)
        self._reader = pa.CompressedInputStream(pa.PythonFile(self._source, mode="r"), "zstd")

    def _next(self, size: int) -> bytes:
        try:
            return bytes(self._reader.read(min(size, ZSTD_OUTPUT_BYTES)))
        except OSError as error:
            if self._source.failed:  # the file itself could not be read
                raise
            if "Truncated" in str(error):
                reason = "the file ends in the middle of its zstd data: it is truncated"
            elif "too much memory" in str(error):
                reason = "its zstd window is larger than 128 MiB; decompress it first with zstd -d --long=31"
            else:
                reason = f"damaged zstd data at or shortly before this byte ({str(error).lower()})"
            raise DamagedFileError(reason, self.byte) from None


class _StoredBytes:
    """The stored bytes as a file object for pyarrow, which closes it without closing the file."""

    closed = False

    def __init__(self, stored: Callable[[int], bytes]) -> None:
        self.stored = stored
        self.failed = False

    def read(self, size: int) -> bytes:
        self.failed = True
        data = self.stored(size)
        self.failed = False
        return data

    def close(self) -> None:
        pass
