"""Reading a .bz2 file as a stream that knows where in the file it is, so that damage can be told by its byte offset."""

import bz2
from typing import IO

FEED = 1024  # compressed bytes fed at once: small, for they may be zeros in the tens of megabytes


class DamagedFileError(Exception):
    """A compressed file that ends early or does not decompress. The message says what; `byte` is the offset."""

    def __init__(self, reason: str, byte: int) -> None:
        super().__init__(reason)
        self.byte = byte


class Bzip2Stream:
    """The decompressed bytes of `file`, which may hold several bzip2 streams one after the other (multistream dumps).

    Holds a block or two (900 kB each). `byte` is how many compressed bytes have gone in. A block is given out only once
    its checksum has been found right.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.byte = 0
        self._decompressor = bz2.BZ2Decompressor()
        self._begun = False  # the present bzip2 stream has had input
        self._waiting = b""  # the end of it may belong to a block whose checksum comes with the next input
        self._checked = bytearray()

    def read(self, size: int) -> bytes:
        """Up to `size` bytes (size > 0), none only at the end. Raises DamagedFileError at the first block that is not whole."""
        while not self._checked:
            compressed = self._next_input()
            if not compressed:
                break
            self._decompress(compressed)
        data = bytes(self._checked[:size])
        del self._checked[:size]
        return data

    def _next_input(self) -> bytes:
        compressed = b""
        if self._decompressor.eof:
            compressed = self._decompressor.unused_data
            self._decompressor, self._begun = bz2.BZ2Decompressor(), False
        if not compressed:
            compressed = self.file.read(FEED)
            self.byte += len(compressed)
        if self._begun and not compressed:
            raise DamagedFileError("the file ends in the middle of its bzip2 data: it is truncated", self.byte)
        return compressed

    def _decompress(self, compressed: bytes) -> None:
        self._begun = True
        try:
            data = self._decompressor.decompress(compressed)
        except OSError as error:
            raise DamagedFileError(
                f"damaged bzip2 data at or shortly before this byte ({str(error).lower()})", self.byte
            ) from None
        self._checked += self._waiting
        self._waiting = data
        if self._decompressor.eof:
            self._checked += self._waiting
            self._waiting = b""
