"""Stage `data` reads the same rows from every format and compression."""

import bz2
import gzip
import json
import lzma
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cpo_ray.artifacts import Summary, read_jsonl
from cpo_ray.data.examples import prepare_examples
from cpo_ray.data.tokenization import train_tokenizer
from cpo_ray.errors import DataError
from tests.data.dumps import dump, page
from tests.data.test_articles import article
from tests.data.test_articles import configure as configure_articles
from tests.data.test_examples import configure, rows_of

REPORTS = Path(__file__).parents[2] / "../shared/reports"
FIELDS = {"instruction": "instruction", "context": "input", "response": "output"}
SIZES = {"train_rows": 16, "validation_rows": 2, "test_rows": 6}
ROWS = [
    {"instruction": f"Name colour {n}.", "input": f"Box {n}." if n % 3 == 0 else "", "output": f"Colour {n} is blue."}
    for n in range(24)
]
CHAT = [
    {"messages": [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]}
    for row in ROWS
]
Writer = Callable[[Path, Sequence[Any]], None]


def lines(rows: Sequence[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write_parquet(path: Path, rows: Sequence[Any]) -> None:
    pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=7)


def write_folder(path: Path, rows: Sequence[Any]) -> None:
    """An array, lines, and an object for each other row."""
    path.mkdir()
    (path / "00.json").write_text(json.dumps(rows[:4], indent=1))
    (path / "01.json").write_bytes(lines(rows[4:8]))
    for number, row in enumerate(rows[8:], 10):
        (path / f"{number}.json").write_text(json.dumps(row, indent=2))


FORMATS: dict[str, tuple[Writer, dict[str, int]]] = {
    "plain.jsonl": (lambda path, rows: path.write_bytes(lines(rows)) and None, {"JSON lines": 1}),
    "bom.jsonl": (lambda path, rows: path.write_bytes("\ufeff".encode() + lines(rows)) and None, {"JSON lines": 1}),
    "crlf.jsonl": (
        lambda path, rows: path.write_bytes(lines(rows).replace(b"\n", b"\r\n")) and None,
        {"JSON lines": 1},
    ),
    "rows.jsonl.gz": (
        lambda path, rows: path.write_bytes(gzip.compress(lines(rows))) and None,
        {"JSON lines (gzip)": 1},
    ),
    "rows.jsonl.xz": (lambda path, rows: path.write_bytes(lzma.compress(lines(rows))) and None, {"JSON lines (xz)": 1}),
    "rows": (lambda path, rows: path.write_bytes(bz2.compress(lines(rows))) and None, {"JSON lines (bzip2)": 1}),
    "rows.zst": (
        lambda path, rows: path.write_bytes(pa.compress(lines(rows), codec="zstd", asbytes=True)) and None,
        {"JSON lines (zstd)": 1},
    ),
    "array.json": (lambda path, rows: path.write_text(json.dumps(rows, indent=1)) and None, {"a JSON array": 1}),
    "rows.parquet": (write_parquet, {"Parquet": 1}),
    "a file.dat": (write_parquet, {"Parquet": 1}),
    "folder": (write_folder, {"JSON lines": 1, "JSON objects": 16, "a JSON array": 1}),
}


def prepare(path: Path, out: Path, **data: Any) -> Summary:
    return prepare_examples(configure(source="instructions", path=path, **{"fields": FIELDS, **SIZES, **data}), out)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("expected")
    (folder / "rows.jsonl").write_bytes(lines(ROWS))
    prepare(folder / "rows.jsonl", folder / "out")
    return rows_of(folder / "out", "train", "validation", "test")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(
    name: str, expected: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write, formats = FORMATS[name]
    write(tmp_path / name, ROWS)
    summary = prepare(tmp_path / name, tmp_path / "out")
    assert summary["formats"] == formats
    assert rows_of(tmp_path / "out", "train", "validation", "test") == expected
    output = capsys.readouterr().out
    for description in formats:
        assert re.search(rf"reading .*{re.escape(name)}\S* as {re.escape(description)}$", output, re.MULTILINE)
    assert "0/0" not in output
    assert "0 s left" not in output


@pytest.mark.parametrize("as_parquet", [False, True])
def test_rows_of_messages_are_conversations(as_parquet: bool, tmp_path: Path) -> None:
    path = tmp_path / "rows"
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    rows = [*CHAT[:23], {"messages": [*turns, *turns, turns[0]]}]
    write_parquet(path, rows) if as_parquet else path.write_bytes(lines(rows))
    summary = prepare(path, tmp_path / "out")
    counts = {key: summary[key] for key in ("conversations", "multi_turn_conversations", "unanswered_messages")}
    assert counts == {"conversations": 24, "multi_turn_conversations": 1, "unanswered_messages": 1}
    prompts = {row["prompt"]: row["response"] for row in rows_of(tmp_path / "out", "train", "validation", "test")}
    assert prompts["Name colour 3.\n"] == "Colour 3 is blue."
    assert prompts["user: Why?\n\nassistant: So.\n\nuser: Why?\n"] == "So."


def test_absent_contexts_are_counted_and_a_wrong_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines([row if row["input"] else {**row, "input": None} for row in ROWS[:12]]))
    with path.open("ab") as file:
        file.write(
            lines([row if row["input"] else {k: row[k] for k in ("instruction", "output")} for row in ROWS[12:]])
        )
    assert prepare(path, tmp_path / "out")["rows_without_context_key"] == 8
    with pytest.raises(DataError, match=r"no row has the key 'inptu' .*; the first one has instruction, input, output"):
        prepare(path, tmp_path / "typo", fields={**FIELDS, "context": "inptu"})


def test_bad_rows_of_an_array_and_of_parquet_are_named_by_number(tmp_path: Path) -> None:
    rows = [*ROWS, {**ROWS[0], "output": None}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    write_parquet(tmp_path / "rows.parquet", rows)
    for name in ("rows.json", "rows.parquet"):
        with pytest.raises(DataError, match=rf"{re.escape(name)}: row 25: output must be text, not NoneType"):
            prepare(tmp_path / name, tmp_path / "out")
    prepare(tmp_path / "rows.parquet", tmp_path / "lenient", on_bad_row="quarantine")
    (bad,) = read_jsonl(tmp_path / "lenient/quarantine.jsonl")
    assert (bad["line"], bad["row"], bad["byte"]) == (None, 25, None)


def test_damaged_parquet_is_reported(tmp_path: Path) -> None:
    write_parquet(tmp_path / "rows.parquet", ROWS)
    content = (tmp_path / "rows.parquet").read_bytes()
    (tmp_path / "rows.parquet").write_bytes(content[:-20])
    with pytest.raises(DataError, match=r"rows\.parquet: row 1: damaged Parquet \(.*data\.on_bad_row"):
        prepare(tmp_path / "rows.parquet", tmp_path / "out")


def test_pages_that_are_left_out_are_in_the_summary_and_in_the_error(tmp_path: Path) -> None:
    train_tokenizer([f"word{n}x{k} w{k}" for n in range(9) for k in range(50)], 400).save_pretrained(
        tmp_path / "tokenizer"
    )
    talk = [page(f"Talk:{n}", "Is it?", ns=1) for n in range(5)]
    table = page("Table", article(20) + "\n{|\n| a\n")
    pages = [page(f"Article {n}", article(n)) for n in range(20)]
    (tmp_path / "all.xml").write_bytes(dump(*talk, table, *pages))
    summary = prepare_examples(configure_articles(tmp_path / "all.xml", tmp_path / "tokenizer"), tmp_path / "out")
    counts = {key: summary[key] for key in ("articles", "pages_in_other_namespaces", "unclosed_tables", "formats")}
    assert counts == {
        "articles": 21,
        "pages_in_other_namespaces": 5,
        "unclosed_tables": 1,
        "formats": {"MediaWiki XML": 1},
    }
    (tmp_path / "talk.xml").write_bytes(dump(*talk))
    with pytest.raises(DataError, match=r"0 articles \(.*; not articles: pages_in_other_namespaces 5\)"):
        prepare_examples(configure_articles(tmp_path / "talk.xml", tmp_path / "tokenizer"), tmp_path / "none")


@pytest.mark.parametrize(
    "name",
    ["bom.jsonl", "nullctx.jsonl", "missctx.jsonl", "rows.jsonl.gz", "rows.parquet", "array.json", "nested.jsonl"],
)
def test_reported_rows(name: str, tmp_path: Path) -> None:
    if not REPORTS.is_dir():
        pytest.skip(f"{REPORTS} is absent")
    prepare(REPORTS / name, tmp_path / "out")
    assert len(rows_of(tmp_path / "out", "train", "validation", "test")) == 24


def test_reported_utf16(tmp_path: Path) -> None:
    if not REPORTS.is_dir():
        pytest.skip(f"{REPORTS} is absent")
    with pytest.raises(DataError, match=r"utf16\.jsonl is UTF-16.*iconv -f UTF-16"):
        prepare(REPORTS / "utf16.jsonl", tmp_path / "out")


@pytest.mark.parametrize("name", ["slots.xml", "magic.xml", "dump.xml.gz", "multistream"])
def test_reported_dumps(name: str, tmp_path: Path) -> None:
    if not REPORTS.is_dir():
        pytest.skip(f"{REPORTS} is absent")
    tokenizer = REPORTS / "tokenizer_appends_eos"
    sizes = {"train_rows": 6, "validation_rows": 2, "test_rows": 3}
    summary = prepare_examples(configure_articles(REPORTS / name, tokenizer, **sizes), tmp_path / "out")
    assert summary["articles"] == 12
    assert summary.get("unclosed_tables", 0) == (12 if name == "magic.xml" else 0)
    for row in rows_of(tmp_path / "out", "train", "validation", "test"):
        assert not re.search(r"__|\{\||wikitable|secondary slot", row["prompt"] + row["response"])
