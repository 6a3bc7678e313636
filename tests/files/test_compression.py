import bz2
import gzip
import io
import lzma
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpo_ray.errors import DataError
from cpo_ray.files.compression import DamagedFileError, open_stream

PAYLOAD = bytes(range(256)) * 40


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zstd": zstd,
}  # fmt: skip
ANY = pytest.mark.parametrize("kind", COMPRESS)


def read_all(stored: bytes, size: int = 1000) -> bytes:
    stream = open_stream(io.BytesIO(stored), "x.jsonl")
    return b"".join(iter(lambda: stream.read(size), b""))


@ANY
def test_the_content_decides_not_the_name(kind: str) -> None:
    stream = open_stream(io.BytesIO(COMPRESS[kind](PAYLOAD)), "rows.jsonl")
    assert stream.compression == kind
    assert io.BufferedReader(stream).read() == PAYLOAD
    assert stream.byte == len(COMPRESS[kind](PAYLOAD))


def test_a_plain_file_is_not_changed() -> None:
    stream = open_stream(io.BytesIO(b"BZ, a text"), "rows.jsonl.bz2")
    assert (stream.compression, stream.read(100) + stream.read(100), stream.byte) == (None, b"BZ, a text", 10)


@given(
    st.sampled_from(sorted(COMPRESS)), st.lists(st.binary(max_size=300), min_size=1, max_size=4), st.integers(1, 500)
)
def test_concatenated_streams_read_as_one(kind: str, pieces: list[bytes], size: int) -> None:
    assert read_all(b"".join(map(COMPRESS[kind], pieces)), size) == b"".join(pieces)


def test_zeros_after_a_stream_are_padding() -> None:
    stored = gzip.compress(b"one") + bytes(2000) + gzip.compress(b"two") + bytes(5)
    assert read_all(stored) == b"onetwo"


@given(st.sampled_from(sorted(COMPRESS)), st.data())
def test_a_truncated_file_is_reported_with_its_length(kind: str, data: st.DataObject) -> None:
    first, second = COMPRESS[kind](PAYLOAD), COMPRESS[kind](b"more")
    cut = data.draw(st.integers(6, len(first + second) - 1).filter(lambda cut: cut != len(first)))
    with pytest.raises(DamagedFileError, match="truncated") as caught:
        read_all((first + second)[:cut])
    assert caught.value.byte == cut


BLOCKS = random.Random(17).randbytes(250_000)  # three blocks of 100 kB
STORED = bz2.compress(BLOCKS, 1)


@given(st.integers(4, len(STORED) - 2), st.integers(1, 255))
@settings(max_examples=20)
def test_a_damaged_bzip2_file_gives_only_verified_blocks(position: int, change: int) -> None:
    """The last byte is left out, because part of it may be padding."""
    damaged = bytearray(STORED)
    damaged[position] ^= change
    stream = open_stream(io.BytesIO(bytes(damaged)), "x.bz2")
    given = b""
    with pytest.raises(DamagedFileError) as caught:  # noqa: PT012 - the data read before the error is checked
        while data := stream.read(16_000):
            given += data
    assert BLOCKS.startswith(given)
    assert len(given) % 99_981 == 0  # whole blocks
    assert position < caught.value.byte


@pytest.mark.parametrize("kind", ["bzip2", "gzip", "xz"])
def test_data_before_the_damage_comes_first(kind: str) -> None:
    damaged = bytearray(COMPRESS[kind](b"one" * 100) + COMPRESS[kind](b"two" * 100))
    damaged[-8] ^= 0xFF
    stream = open_stream(io.BytesIO(bytes(damaged)), "x")
    assert stream.read(1000).startswith(b"one" * 100)
    with pytest.raises(DamagedFileError, match=f"damaged {kind} data at or shortly before this byte"):  # noqa: PT012
        while stream.read(1000):
            pass


def test_damaged_zstd_is_reported() -> None:
    stored = subprocess.run(["zstd", "-c", "-q"], input=BLOCKS, capture_output=True, check=True).stdout
    damaged = bytearray(stored)
    damaged[len(stored) // 2] ^= 0xFF
    with pytest.raises(DamagedFileError, match="damaged zstd data at or shortly before this byte"):
        read_all(bytes(damaged))


@ANY
def test_bytes_after_the_last_stream_are_damage(kind: str) -> None:
    with pytest.raises(DamagedFileError):
        read_all(COMPRESS[kind](b"x") + b"garbage")


@ANY
def test_memory_holds_a_piece_not_the_file(kind: str) -> None:
    """Twenty megabytes of zeros compress to little; they must not be decompressed at once."""
    stream = open_stream(io.BytesIO(COMPRESS[kind](bytes(20 << 20))), "zeros")
    data = stream.read(1 << 16)
    assert data == bytes(len(data))
    assert stream.byte <= 1 << 16


@pytest.mark.parametrize(
    ("magic", "words"),
    [
        (
            b"7z\xbc\xaf\x27\x1c",
            r"a dump\.xml\.7z is a 7z archive.* 7z x -so 'a dump\.xml\.7z' \| zstd > 'a dump\.xml\.zst'",
        ),
        (b"PK\x03\x04\x00\x00", "is a zip archive"),
    ],
)
def test_an_archive_is_named_with_the_command_that_converts_it(magic: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_stream(io.BytesIO(magic + b"..."), "a dump.xml.7z")


def test_a_lost_connection_is_no_damage(tmp_path: Path) -> None:
    class Lost(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell():
                raise ConnectionError("lost")
            return super().read(size)

    stream = open_stream(Lost(zstd(PAYLOAD)), "x.zst")
    with pytest.raises(ConnectionError):
        stream.read(10)
