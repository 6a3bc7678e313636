import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpo_ray.files import json_values
from cpo_ray.files.json_values import BrokenJsonError, is_json_lines, read_json_values

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)


def read(content: bytes) -> list[tuple[int, Any]]:
    return list(read_json_values(io.BytesIO(content)))


@given(st.lists(VALUES, max_size=5), st.sampled_from([None, 1]), st.booleans(), st.integers(1, 9))
def test_any_array_is_read_in_pieces_of_any_size(
    values: list[Any], indent: int | None, escaped: bool, piece: int
) -> None:
    content = json.dumps(values, indent=indent, ensure_ascii=escaped).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_values, "PIECE_BYTES", piece)
        assert read(content + b"\r\n") == list(enumerate(values, 1))


def test_objects_one_after_the_other_are_read() -> None:
    objects = [{"a": 1}, {"b": [2, 3]}]
    assert read("\n".join(json.dumps(value, indent=2) for value in objects).encode()) == list(enumerate(objects, 1))


def test_reading_streams() -> None:
    values = read_json_values(io.BytesIO(b'[{"a": 1}, {"b": 2}, broken'))
    assert [next(values), next(values)] == [(1, {"a": 1}), (2, {"b": 2})]


@pytest.mark.parametrize(
    ("content", "row", "line", "reason"),
    [
        (b'[\n {"a": 1},\n {"a": }\n]', 2, 3, "not JSON: Expecting value"),
        (b'[\n {"a": 1},\n {"a": 2', 2, 3, "not JSON: "),
        (b'[{"a": 1}', 2, 1, "']' is expected, not the end of the file"),
        (b'[{"a": 1}\n{"a": 2}]', 2, 2, "',' is expected, not '{'"),
        (b'[{"a": 1}]\n[]', 2, 2, "text after the end of the JSON array"),
        (b'[{"a": 1},\n{"a": "\xff"}]', 2, 2, "not UTF-8: byte 0xff"),
        (b"[" + b"9" * 5000 + b"]", 1, 1, "Exceeds the limit"),
        (b"[" * 100_000, 1, 1, "recursion"),
    ],
)
def test_what_is_broken_is_named_by_row_and_line(content: bytes, row: int, line: int, reason: str) -> None:
    with pytest.raises(BrokenJsonError, match=reason) as caught:
        read(content)
    assert (caught.value.row, caught.value.line) == (row, line)


def test_an_invalid_value_does_not_read_the_whole_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_values, "MAX_VALUE_CHARACTERS", 1000)
    monkeypatch.setattr(json_values, "PIECE_BYTES", 100)
    file = io.BytesIO(b'[{"a": ]' + b" " * 1_000_000)
    with pytest.raises(BrokenJsonError, match="Expecting value"):
        list(read_json_values(file))
    assert file.tell() < 5000


@pytest.mark.parametrize(
    ("head", "lines"),
    [
        (b'{"a": 1}\n{"a": 2}', True),
        (b"broken\n", True),
        (b"", True),
        (b' \n{"a"', True),
        (b"[1]", False),
        (b"\r\n [\r\n", False),
        (b"{\r\n", False),
    ],
)
def test_the_first_line_decides_whether_a_file_is_json_lines(head: bytes, lines: bool) -> None:
    assert is_json_lines(head) is lines
