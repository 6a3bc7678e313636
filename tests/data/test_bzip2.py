import bz2
import io
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpo_ray.data.bzip2 import Bzip2Stream, DamagedFileError

PAYLOAD = bytes(range(256)) * 40


def read_all(compressed: bytes, size: int = 1000) -> bytes:
    stream = Bzip2Stream(io.BytesIO(compressed))
    return b"".join(iter(lambda: stream.read(size), b""))


@given(st.lists(st.binary(max_size=300), max_size=4), st.integers(1, 500))
def test_concatenated_streams_read_as_one(pieces: list[bytes], size: int) -> None:
    assert read_all(b"".join(map(bz2.compress, pieces)), size) == b"".join(pieces)


@given(st.data())
def test_a_truncated_file_is_reported_with_its_length(data: st.DataObject) -> None:
    first, second = bz2.compress(PAYLOAD), bz2.compress(b"more")
    cut = data.draw(st.integers(1, len(first + second) - 1).filter(lambda cut: cut != len(first)))
    with pytest.raises(DamagedFileError, match="truncated") as caught:
        read_all((first + second)[:cut])
    assert caught.value.byte == cut


BLOCKS = random.Random(17).randbytes(250_000)  # three blocks of 100 kB
STORED = bz2.compress(BLOCKS, 1)


@given(st.integers(4, len(STORED) - 2), st.integers(1, 255))
@settings(max_examples=20)
def test_a_damaged_file_gives_only_verified_blocks(position: int, change: int) -> None:
    """The last byte is left out, because part of it may be padding."""
    damaged = bytearray(STORED)
    damaged[position] ^= change
    stream = Bzip2Stream(io.BytesIO(bytes(damaged)))
    given = b""
    with pytest.raises(DamagedFileError) as caught:  # noqa: PT012 - the data read before the error is checked
        while data := stream.read(16_000):
            given += data
    assert BLOCKS.startswith(given)
    assert len(given) % 99_981 == 0  # whole blocks
    assert position < caught.value.byte


def test_data_before_the_damage_comes_first() -> None:
    damaged = bytearray(bz2.compress(b"one" * 100) + bz2.compress(b"two" * 100))
    damaged[-8] ^= 0xFF
    stream = Bzip2Stream(io.BytesIO(bytes(damaged)))
    assert stream.read(1000) == b"one" * 100
    with pytest.raises(DamagedFileError, match="damaged bzip2 data at or shortly before this byte"):
        stream.read(1000)


def test_bytes_after_the_last_stream_are_damage() -> None:
    with pytest.raises(DamagedFileError):
        read_all(bz2.compress(b"x") + b"garbage")


def test_memory_holds_a_block_not_the_file() -> None:
    """A hundred megabytes of zeros compress to a few hundred bytes; they must not be decompressed at once."""
    stream = Bzip2Stream(io.BytesIO(bz2.compress(bytes(100 << 20))))
    assert len(stream.read(1 << 16)) == 1 << 16
