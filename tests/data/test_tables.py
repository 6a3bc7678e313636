import io
from pathlib import Path

import pytest

from cpo_ray.data.examples import prepare_examples
from cpo_ray.data.tables import is_table, read_table_rows
from cpo_ray.errors import DataError
from tests.data.test_examples import configure


def read(content: bytes, name: str = "rows.csv") -> list[tuple[int, dict[str, str] | str]]:
    return list(read_table_rows(io.BytesIO(content), name))


def test_a_row_has_the_texts_of_its_columns() -> None:
    content = b'q,a\r\n"Why, then?","He said ""so"".\nOver two lines."\r\n\r\nHow?,So.\r\n'
    assert read(content) == [
        (3, {"q": "Why, then?", "a": 'He said "so".\nOver two lines.'}),
        (5, {"q": "How?", "a": "So."}),
    ]


def test_tabs_and_semicolons_separate_too() -> None:
    assert read(b"q\ta\nx, y\tz\n", "rows.tsv.gz") == [(2, {"q": "x, y", "a": "z"})]
    assert read(b"q;a\nx, y;z\n") == [(2, {"q": "x, y", "a": "z"})]


def test_a_row_that_cannot_be_read_is_reported_and_the_others_are_read() -> None:
    content = b'q,a\nx\ncaf\xe9,y\n"x"y,z\nu,v\n'
    (short, first), (encoded, second), (quoted, third), last = read(content)
    assert (short, encoded, quoted) == (2, 3, 4)
    assert first == "1 values, but the first line names 2 columns; is a comma or a quote missing?"
    assert isinstance(second, str)
    assert second.startswith("not UTF-8: in b'caf\\xe9'")
    assert isinstance(third, str)
    assert third.startswith("not CSV: ")
    assert last == (5, {"q": "u", "a": "v"})


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "is empty"), (b"\n", "is empty"), (b"q,q\nx,y\n", "names the columns, each once"), (b"q,\nx,y\n", "'q,'")],
)
def test_a_table_without_column_names_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read(content)


def test_a_table_is_known_by_its_ending_unless_it_is_json() -> None:
    assert is_table("a/rows.csv", b"q,a\n")
    assert is_table("rows.tsv.zst", b"q\ta\n")
    assert not is_table("rows.csv", b'{"q": 1}\n')
    assert not is_table("rows.jsonl", b"q,a\n")


def test_a_csv_under_another_name_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "rows.data").write_text("instruction,response\nWhy?,So.\n")
    with pytest.raises(DataError, match=r"rows\.data:1: not JSON: .* CSV needs the ending \.csv or \.tsv"):
        prepare_examples(configure(source="alpaca", path=tmp_path / "rows.data"), tmp_path / "out")
