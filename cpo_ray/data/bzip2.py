"""Reads a .bz2 file as a stream and keeps track of the position, so that damage can be reported with its byte offset."""

import bz2
from typing import IO

INPUT_BYTES = 1024  # compressed bytes read at once; small, because they may decompress to tens of megabytes of zeros


class DamagedFileError(Exception):
    """A compressed file that is truncated or does not decompress. The message gives the reason; `byte` is the offset."""

    def __init__(self, reason: str, byte: int) -> None:
        super().__init__(reason)
        self.byte = byte


class Bzip2Stream:
    """The decompressed bytes of `file`, which may consist of several bzip2 streams (multistream dumps).

    Memory holds one or two blocks (900 kB each). `byte` is the number of compressed bytes read so far. A block is returned
    only after its checksum was verified.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.byte = 0
        self._decompressor = bz2.BZ2Decompressor()
        self._has_input = False  # whether the current bzip2 stream has received bytes
        self._unverified = b""  # output whose checksum may come only with the next input
        self._verified = bytearray()

    def read(self, size: int) -> bytes:
        """Up to `size` bytes (size > 0), empty only at the end. Raises DamagedFileError at the first damaged block."""
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
            self._decompressor, self._has_input = bz2.BZ2Decompressor(), False
        if not compressed:
            compressed = self.file.read(INPUT_BYTES)
            self.byte += len(compressed)
        if self._has_input and not compressed:
            raise DamagedFileError("the file ends in the middle of its bzip2 data: it is truncated", self.byte)
        return compressed

    def _decompress(self, compressed: bytes) -> None:
        self._has_input = True
        try:
            data = self._decompressor.decompress(compressed)
        except OSError as error:
            raise DamagedFileError(
                f"damaged bzip2 data at or shortly before this byte ({str(error).lower()})", self.byte
            ) from None
        self._verified += self._unverified
        self._unverified = data
        if self._decompressor.eof:
            self._verified += self._unverified
            self._unverified = b""
