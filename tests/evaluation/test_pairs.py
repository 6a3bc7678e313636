import json
from pathlib import Path
from typing import Any

import pytest

from cpo_ray.errors import DataError
from cpo_ray.evaluation.pairs import read_pairs


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def answer(key: str, response: str, prompt: str = "p", **more: Any) -> dict[str, Any]:
    return {"id": key, "prompt": prompt, "response": response, **more}


@pytest.fixture
def references(tmp_path: Path) -> Path:
    return write(tmp_path / "b.jsonl", answer("1", "one"), answer("2", "two"), answer("3", "three", tokens=1))


def test_answers_are_joined_by_id_in_the_candidates_order(tmp_path: Path, references: Path) -> None:
    candidates = write(tmp_path / "a.jsonl", answer("3", ""), "", answer("1", "un\u2028e", reference="not this one"))
    assert read_pairs(candidates, references) == [
        {"id": "3", "prompt": "p", "response": "", "reference": "three"},
        {"id": "1", "prompt": "p", "response": "un\u2028e", "reference": "one"},
    ]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ('{"id": "2", "prom', r"a.jsonl:2 is not JSON"),
        ('{"id": "2", "prompt": "p"}', r"a.jsonl:2: `response` is missing"),
        ('{"id": 2, "prompt": "p", "response": ""}', r"a.jsonl:2: `id` is int, not text"),
        ('{"id": "2", "prompt": "p", "response": null}', r"a.jsonl:2: `response` is NoneType, not text"),
        ('{"id": "2", "prompt": "p", "response": "\\ud800"}', r"a.jsonl:2: `response` holds half a surrogate pair"),
        ("[]", r"a.jsonl:2: expected an object with id, prompt, response, not list"),
        (answer("1", "again"), r"a.jsonl:2: duplicate id '1', first on line 1"),
        (answer("9", "nine"), r"a.jsonl:2: id '9' is not in .*b.jsonl"),
        (answer("2", "deux", prompt="q"), r"one prompt at .*a.jsonl:2 and another at .*b.jsonl:2"),
    ],
)
def test_an_invalid_row_is_named_with_its_line(tmp_path: Path, references: Path, row: Any, complaint: str) -> None:
    candidates = write(tmp_path / "a.jsonl", answer("1", "un"), row)
    with pytest.raises(DataError, match=complaint):
        read_pairs(candidates, references)


def test_bytes_that_are_not_utf8_are_named_with_their_line(tmp_path: Path, references: Path) -> None:
    candidates = tmp_path / "a.jsonl"
    candidates.write_bytes(b'{"id": "1", "prompt": "p", "response": "\xff"}\n')
    with pytest.raises(DataError, match=r"a.jsonl:1 is not JSON"):
        read_pairs(candidates, references)


def test_an_empty_or_missing_file_is_named(tmp_path: Path, references: Path) -> None:
    with pytest.raises(DataError, match=r"empty.jsonl holds no answers"):
        read_pairs(references, write(tmp_path / "empty.jsonl"))
    with pytest.raises(DataError, match=r"nowhere.jsonl cannot be read: No such file"):
        read_pairs(tmp_path / "nowhere.jsonl", references)
