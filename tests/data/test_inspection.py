import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cpo_ray.config import RunConfig
from cpo_ray.data.inspection import FIRST_ROWS, Beginning, check_beginning, read_beginning, with_expected_rows
from cpo_ray.errors import DataError
from tests.data.test_examples import configure

ROW = {"instruction": "Why?", "output": "So, because of this and of that."}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def look(path: Path | str, **data: Any) -> tuple[RunConfig, Beginning | str]:
    config = configure(path=path, **data)
    (source,) = config.data.inputs
    return config, read_beginning(source)


def test_a_short_file_is_counted(tmp_path: Path) -> None:
    config, found = look(write(tmp_path / "rows.jsonl", [*[ROW] * 40, *[{"instruction": "x"}] * 10]))
    assert isinstance(found, Beginning)
    assert (found.format, found.layout, found.usable, found.rows, found.is_exact) == (
        "JSON lines",
        "alpaca",
        40,
        50,
        True,
    )
    assert str(found) == (
        f"{tmp_path}/rows.jsonl: JSON lines, layout `alpaca`, 50 rows; of the first 50, 10 cannot be used (10 like "
        f"{tmp_path}/rows.jsonl:41: missing key output; found instruction)"
    )
    counted, remark = with_expected_rows(config, [found])
    assert counted.data.sizes == {"train": 32, "validation": 4, "test": 4}
    assert remark == ["splits: 32 train, 4 validation, 4 test, of 40 usable rows"]
    with pytest.raises(DataError, match=r"rows\.jsonl:41: missing key output; .*data\.on_bad_row=quarantine"):
        check_beginning(config.data, [found])
    check_beginning(configure(path="x", on_bad_row="quarantine").data, [found])


def test_the_rows_of_a_long_file_are_estimated_from_its_bytes(tmp_path: Path) -> None:
    config, found = look(write(tmp_path / "rows.jsonl", [ROW] * 20_000))
    assert isinstance(found, Beginning)
    assert (found.usable, found.is_exact) == (FIRST_ROWS, False)
    assert found.rows is not None
    assert 19_000 <= found.rows <= 21_000
    _, (remark,) = with_expected_rows(config, [found])
    assert "of about" in remark


def test_parquet_says_how_many_rows_it_has(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([ROW] * 3000), tmp_path / "rows.parquet")
    _, found = look(tmp_path / "rows.parquet")
    assert isinstance(found, Beginning)
    assert (found.rows, found.is_exact, found.usable) == (3000, True, FIRST_ROWS)


@pytest.mark.parametrize("path", ["owner/name", "https://example.org/rows.jsonl", "absent.jsonl"])
def test_what_is_not_on_this_machine_is_not_read(path: str) -> None:
    config, found = look(path)
    assert isinstance(found, str)
    assert found.startswith(path)
    assert "when the run starts" in found
    counted, (remark,) = with_expected_rows(config, [found])
    assert counted.data.rows("train") == 8000
    assert remark.endswith("if there are 10,000 rows, which is assumed")
    assert with_expected_rows(counted, [found]) == (counted, [])


def test_several_files_are_named_by_the_first(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}.jsonl", [ROW] * 100)
    _, found = look(tmp_path)
    assert isinstance(found, Beginning)
    assert found.place == f"{tmp_path}/a.jsonl and 1 more files"
    assert found.rows == 200
