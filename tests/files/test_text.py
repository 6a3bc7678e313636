import gzip
import io
import tarfile

import pytest

from cpo_ray.errors import DataError
from cpo_ray.files.compression import open_stream
from cpo_ray.files.text import open_text


def read(stored: bytes, name: str = "my rows.jsonl") -> bytes:
    return open_text(open_stream(io.BytesIO(stored), name), name).lines.read()


def test_a_bom_is_no_content() -> None:
    assert read("\ufeffone\n".encode()) == b"one\n"
    assert read(gzip.compress("\ufeffone\n".encode())) == b"one\n"
    assert read("\ufeff".encode()) == b""
    assert read("one \ufeff two".encode()) == "one \ufeff two".encode()


@pytest.mark.parametrize(
    ("encoding", "name"),
    [("utf-16", "UTF-16"), ("utf-16-le", "UTF-16LE"), ("utf-16-be", "UTF-16BE"), ("utf-32", "UTF-32")],
)
def test_another_encoding_is_named_with_the_command_that_converts_it(encoding: str, name: str) -> None:
    with pytest.raises(
        DataError, match=rf"is {name}, not UTF-8\. Convert it: iconv -f {name} -t UTF-8 'my rows\.jsonl' > '.*\.utf8'"
    ):
        read('{"a": 1}'.encode(encoding))


def test_the_command_decompresses_first() -> None:
    with pytest.raises(DataError, match=r"gzip -dc rows\.gz \| iconv -f UTF-16 -t UTF-8 > rows\.gz\.utf8"):
        read(gzip.compress("text".encode("utf-16")), "rows.gz")


def test_tar_and_parquet_are_named() -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("rows.jsonl"))
    with pytest.raises(DataError, match=r"is a tar archive.*\(tar -xf rows"):
        read(gzip.compress(archive.getvalue()), "rows.tar.gz")
    with pytest.raises(DataError, match="is Parquet within gzip: decompress it"):
        read(gzip.compress(b"PAR1..."))
