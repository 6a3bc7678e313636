"""The same rows in every layout give the same files; and what no layout fits is named."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cpo_ray.artifacts import Summary, read_jsonl
from cpo_ray.config import FieldsConfig
from cpo_ray.data.examples import prepare_examples
from cpo_ray.data.layouts import find_layout
from cpo_ray.errors import DataError
from tests.data.test_examples import configure, rows_of

Row = dict[str, Any]
SIZES = {"train_rows": 16, "validation_rows": 2, "test_rows": 6, "tokenizer": {"vocabulary_size": 320}}
DOLLY = [
    {
        "instruction": f"Name colour {n}.",
        "context": f"Box {n}." if n % 3 == 0 else "",
        "response": f"Colour {n} is blue.",
        "category": "qa" if n % 2 else "talk",
    }
    for n in range(24)
]


def question(row: Row) -> str:
    """What the template makes of instruction and context, so that one message can hold both."""
    return "\n".join(filter(None, [row["instruction"], row["context"]]))


def user(row: Row) -> Row:
    return {"role": "user", "content": question(row)}


def assistant(row: Row) -> Row:
    return {"role": "assistant", "content": row["response"]}


def parts(row: Row) -> Row:
    return {"role": "user", "content": [{"type": "text", "text": question(row)}]}


def senders(row: Row) -> list[Row]:
    return [{"from": "human", "value": question(row)}, {"from": "gpt", "value": row["response"]}]


def alpaca(row: Row) -> Row:
    return {"instruction": row["instruction"], "input": row["context"], "output": row["response"]}


LAYOUTS: dict[str, tuple[str, Callable[[Row], Row]]] = {
    "dolly": ("dolly", lambda row: row),
    "alpaca": ("alpaca", alpaca),
    "messages": ("messages", lambda row: {"messages": [user(row), assistant(row)]}),
    "messages of parts": ("messages", lambda row: {"messages": [parts(row), assistant(row)]}),
    "sharegpt": ("sharegpt", lambda row: {"conversations": senders(row)}),
    "texts": ("prompt_completion", lambda row: {"prompt": question(row), "completion": row["response"]}),
    "turns": ("prompt_completion", lambda row: {"prompt": [user(row)], "completion": [assistant(row)]}),
    "turns and text": ("prompt_completion", lambda row: {"prompt": [user(row)], "completion": row["response"]}),
}


def write(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_csv(path: Path, rows: Sequence[Row]) -> Path:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def prepare(path: Path, out: Path, **data: Any) -> Summary:
    return prepare_examples(configure(path=path, **(SIZES | data)), out)


def content(out: Path) -> dict[str, bytes]:
    return {str(file.relative_to(out)): file.read_bytes() for file in sorted(out.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the rows in Dolly's layout."""
    folder = tmp_path_factory.mktemp("expected")
    prepare(write(folder / "rows.jsonl", DOLLY), folder / "out")
    return content(folder / "out")


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("is_named", [False, True])
def test_every_layout_gives_the_same_files(
    name: str, is_named: bool, expected: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So it gives the same groups: stage `sampling` reads nothing else of the data."""
    layout, convert = LAYOUTS[name]
    rows = [convert(row) | {"category": row["category"]} for row in DOLLY]
    path = write(tmp_path / "rows.jsonl", rows)
    named = {"source": layout} if is_named and layout != "dolly" else {}  # `dolly` has a source and ids of its own
    prepare(path, tmp_path / "out", **named)
    assert content(tmp_path / "out") == expected
    said = f"rows of {path} are in the layout `{layout}`"
    assert (said in capsys.readouterr().out.replace("\n", "")) == (not named)


def test_csv_and_named_fields_give_the_same_files(expected: dict[str, bytes], tmp_path: Path) -> None:
    prepare(write_csv(tmp_path / "rows.csv", DOLLY), tmp_path / "csv")
    assert content(tmp_path / "csv") == expected
    names = {"instruction": "q", "context": "about", "response": "a", "category": "kind"}
    path = write(tmp_path / "rows.jsonl", [{new: row[old] for old, new in names.items()} for row in DOLLY])
    for source in ("auto", "instructions"):
        prepare(path, tmp_path / source, source=source, fields=names)
        assert content(tmp_path / source) == expected


def test_conversations_of_both_formats_are_the_same(tmp_path: Path) -> None:
    turns = [("system", "Be brief."), ("user", "Why?"), ("assistant", "So."), ("user", "Sure?"), ("assistant", "Yes.")]
    openai = [{"messages": [{"role": role, "content": f"{text} {n}"} for role, text in turns]} for n in range(24)]
    senders = {"user": "human", "assistant": "gpt"}
    shared = [
        {
            "system": f"Be brief. {n}",
            "conversations": [{"from": senders[role], "value": f"{text} {n}"} for role, text in turns[1:]],
        }
        for n in range(24)
    ]
    for name, rows in {"openai": openai, "shared": shared}.items():
        summary = prepare(write(tmp_path / f"{name}.jsonl", rows), tmp_path / name)
        assert summary["multi_turn_conversations"] == 24
    assert content(tmp_path / "openai") == content(tmp_path / "shared")
    quote = "Be brief. 3\n\nuser: Why? 3\n\nassistant: So. 3\n\nuser: Sure? 3\n"
    assert quote in {row["prompt"] for row in rows_of(tmp_path / "openai", "train", "validation", "test")}


def test_a_hundred_rows_work_without_any_size(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"prompt": f"Name {n}.", "completion": f"It is {n}."} for n in range(100)])
    summary = prepare_examples(configure(path=path, tokenizer={"vocabulary_size": 300}), tmp_path / "out")
    assert [summary[f"{name}_rows"] for name in ("train", "validation", "test")] == [80, 10, 10]
    assert summary["unused_rows"] == 0


ASK, ANSWER = user(DOLLY[0]), assistant(DOLLY[0])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [ASK]}, r"messages ends with a message of the user, messages\[0\]"),
        ({"messages": [ASK, ASK, ANSWER]}, r"messages\[0\] and messages\[1\] are both of the user"),
        ({"messages": [ASK, {"role": "assistant", "content": " "}]}, r"messages\[1\], of the assistant, is empty"),
        ({"messages": [ASK, {"role": "wizard", "content": "x"}]}, r"messages\[1\] has the role 'wizard'"),
        ({"messages": [ANSWER, ASK]}, r"messages\[0\] is of the assistant, but a conversation begins"),
        (
            {"messages": [ASK, {"role": "system", "content": "x"}]},
            r"messages\[1\] is a system message, which must come",
        ),
        ({"messages": "Why?"}, "messages must be a list of messages, not str"),
        ({"prompt": "Why?", "completion": "So."}, "missing key messages; found prompt, completion"),
    ],
)
def test_what_a_conversation_must_not_be_is_named_with_its_row(row: Row, reason: str, tmp_path: Path) -> None:
    rows = [LAYOUTS["messages"][1](row) for row in DOLLY]
    path = write(tmp_path / "rows.jsonl", [*rows, row])
    with pytest.raises(DataError, match=rf"rows\.jsonl:25: {reason}"):
        prepare(path, tmp_path / "out")
    assert prepare(path, tmp_path / "lenient", on_bad_row="quarantine")["quarantined_rows"] == 1
    (bad,) = read_jsonl(tmp_path / "lenient/quarantine.jsonl")
    assert bad["line"] == 25


def test_a_first_row_of_no_layout_is_refused_with_its_keys(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"question": "Why?", "answer": "So."}])
    with pytest.raises(DataError, match=r"rows\.jsonl: its first row has the keys question, answer, .*data\.fields"):
        prepare(path, tmp_path / "out")


def test_the_layout_of_a_row_is_that_of_its_keys() -> None:
    messages = [{"role": "user", "content": "Why?"}]
    rows = {
        "messages": {"prompt": "Why?", "messages": messages},  # as in datasets that repeat the first message
        "sharegpt": {"id": 3, "conversations": messages},
        "dolly": {"instruction": "Why?", "response": "So."},
        "alpaca": {"instruction": "Why?", "input": "", "output": "So."},
        "prompt_completion": {"prompt": messages, "completion": messages},
        None: {"messages": "Why?"},
    }
    found = {name: find_layout(row, FieldsConfig()) for name, row in rows.items()}
    assert {name: layout and layout.name for name, layout in found.items()} == {name: name for name in rows}
    own = find_layout({"q": 1, "a": 2}, FieldsConfig(instruction="q", response="a"))
    assert own is not None
    assert (own.name, own.has_names) == ("instructions", True)
