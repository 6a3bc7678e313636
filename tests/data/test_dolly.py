import json
import re
from pathlib import Path

import pytest

from cpo_ray.data.dolly import read_dolly
from cpo_ray.data.rows import BadRow, FileFormat, InstructionRow
from cpo_ray.errors import DataError

GOOD = {"instruction": " Name a fish. ", "context": "", "response": "Cod.", "category": "open_qa"}


def read(tmp_path: Path, *lines: bytes) -> list[InstructionRow | BadRow]:
    path = tmp_path / "dolly.jsonl"
    path.write_bytes(b"\n".join(lines))
    return [record for record in read_dolly(path) if isinstance(record, InstructionRow | BadRow)]


def line(**changes: object) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def test_good_line_becomes_a_row(tmp_path: Path) -> None:
    assert read(tmp_path, line(context="Sea \u2028 life")) == [
        InstructionRow("dolly", "open_qa", "Name a fish.", "Sea \u2028 life", "Cod.")
    ]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (line()[:40], "not JSON: .* the line ends"),
        (b"\0" * 30, "not JSON"),
        (line(response="caf\u00e9").replace(b"\\u00e9", b"\xe9"), "not UTF-8: byte 0xe9"),
        (line(response="   "), "empty response"),
        (line(instruction="", response=""), "empty instruction, response"),
        (json.dumps({"instruction": "Why?"}).encode(), "missing key response, category; found instruction"),
        (line(response=None), "response must be text, not NoneType"),
        (line(context=["a"]), "context must be text, not list"),
        (line(response="\ud800"), "half a surrogate pair"),
        (b"[1, 2]", "a JSON object is expected, not list"),
        (b"9" * 5000, "Exceeds the limit"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_bad_line_is_named_with_its_reason(tmp_path: Path, bad: bytes, reason: str) -> None:
    first, second, third = read(tmp_path, line(), bad, line())
    assert isinstance(first, InstructionRow)
    assert isinstance(third, InstructionRow)
    assert isinstance(second, BadRow)
    assert second.line == 2
    assert re.search(rf"dolly\.jsonl:2: .*{reason}", str(second))


def test_blank_lines_are_skipped_but_counted_in_line_numbers(tmp_path: Path) -> None:
    rows = read(tmp_path, line(), b"", b"  ", b"{", b"")
    assert [type(row) for row in rows] == [InstructionRow, BadRow]
    assert isinstance(rows[1], BadRow)
    assert rows[1].line == 4


def test_a_missing_file_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data file .*absent\.jsonl\. Download .* --set data\.path="):
        list(read_dolly(tmp_path / "absent.jsonl"))


def test_folder_in_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        list(read_dolly(tmp_path))


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_empty_file(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match="is empty"):
        read(tmp_path, content)


def test_reading_streams(tmp_path: Path) -> None:
    path = tmp_path / "dolly.jsonl"
    path.write_bytes(b"\n".join([line()] * 3 + [b"{"]))
    rows = read_dolly(path)
    assert isinstance(next(rows), FileFormat)
    assert isinstance(next(rows), InstructionRow)
    rows.close()  # type: ignore[attr-defined]
