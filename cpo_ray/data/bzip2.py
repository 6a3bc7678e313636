"""Reading a .bz2 file as a stream that knows where in the file it is, so that damage can be told by its byte offset."""

import bz2
from typing import IO

FEED = 16 << 10  # compressed bytes fed at once: how exactly the place of damage is known, a bzip2 block apart


class DamagedFileError(Exception):
    """A compressed file that ends early or does not decompress. The message says what; `byte` is the offset."""

    def __init__(self, reason: str, byte: int) -> None:
        super().__init__(reason)
        self.byte = byte


class Bzip2Stream:
    """The decompressed bytes of `file`, which may hold several bzip2 streams one after the other (multistream dumps).

    Holds one bzip2 block (900 kB) at a time. `byte` is how many compressed bytes have gone in.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.byte = 0
        self._decompressor = bz2.BZ2Decompressor()
        self._begun = False  # the present bzip2 stream has had input

    def read(self, size: int) -> bytes:
        """Up to `size` bytes (size > 0), none only at the end. Raises DamagedFileError at the first byte that is not whole."""
        while True:
            compressed = b""
            if self._decompressor.eof:
                compressed = self._decompressor.unused_data
                self._decompressor, self._begun = bz2.BZ2Decompressor(), False
            if not compressed and self._decompressor.needs_input:
                compressed = self.file.read(FEED)
                self.byte += len(compressed)
                if not compressed:
                    return self._end()
            self._begun = True
            try:
                data = self._decompressor.decompress(compressed, size)
            except OSError as error:
                raise DamagedFileError(
                    f"damaged bzip2 data at or shortly before this byte ({str(error).lower()})", self.byte
                ) from None
            if data:
                return data

    def _end(self) -> bytes:
        if self._begun:
            raise DamagedFileError("the file ends in the middle of its bzip2 data: it is truncated", self.byte)
        return b""
