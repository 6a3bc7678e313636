import gzip
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


def alpaca(prompt: str, output: str, generator: str = "davinci", **more: Any) -> dict[str, Any]:
    return {"instruction": prompt, "output": output, "generator": generator, "dataset": "helpful_base", **more}


def write_array(path: Path, *rows: Any, encoding: str = "utf-8") -> Path:
    path.write_text(json.dumps(rows, indent=2), encoding=encoding)
    return path


def test_files_of_alpaca_eval_are_joined_by_instruction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    references = write_array(tmp_path / "b.json", alpaca("p", "1"), alpaca("q", "2"), alpaca("p", "3"))
    candidates = write_array(
        tmp_path / "a.json", alpaca("q", "deux", "ours"), alpaca("p", "un", "ours"), alpaca("p", "trois", "ours"),
        encoding="utf-8-sig",
    )  # fmt: skip
    pairs = read_pairs(candidates, references)
    assert [(pair["prompt"], pair["response"], pair["reference"]) for pair in pairs] == [
        ("q", "deux", "2"),
        ("p", "un", "1"),
        ("p", "trois", "3"),
    ]
    ids = [pair["id"] for pair in pairs]
    assert len(set(ids)) == 3
    assert ids[2] == f"{ids[1]}-2"
    assert [pair["id"] for pair in read_pairs(write_array(tmp_path / "c.json", alpaca("p", "x")), references)] == ids[
        1:2
    ]
    assert capsys.readouterr().out.count("as answers of alpaca_eval") == 4


def test_a_file_without_ids_is_joined_with_one_that_has_ids_by_the_prompt(tmp_path: Path) -> None:
    references = write_array(tmp_path / "b.json", alpaca("p", "1"), alpaca("q", "2"))
    candidates = write(tmp_path / "a.jsonl", answer("7", "deux", "q"))
    assert read_pairs(candidates, references) == [{"id": "7", "prompt": "q", "response": "deux", "reference": "2"}]
    with pytest.raises(DataError, match=r"a\.jsonl:1: id '8' is not in .*b\.json|the prompt 'r' is not in"):
        read_pairs(write(tmp_path / "a.jsonl", answer("8", "x", "r")), references)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"instruction": "q"}, r"a\.json: row 2: `output` is missing"),
        (
            alpaca("q", "", generator="other"),
            r"a\.json: row 2: its generator is 'other', that of earlier rows 'davinci'",
        ),
        (alpaca("r", ""), r"a\.json: row 2: the prompt 'r' is not in .*b\.json"),
        ([], r"a\.json: row 2: expected an object with instruction, output, not list"),
    ],
)
def test_an_invalid_row_of_an_array_is_named_with_its_number(tmp_path: Path, row: Any, complaint: str) -> None:
    references = write_array(tmp_path / "b.json", alpaca("p", "1"), alpaca("q", "2"))
    with pytest.raises(DataError, match=complaint):
        read_pairs(write_array(tmp_path / "a.json", alpaca("p", "un"), row), references)


def test_arrays_boms_and_compressed_files_with_ids_are_read(tmp_path: Path, references: Path) -> None:
    expected = [{"id": "1", "prompt": "p", "response": "un", "reference": "one"}]
    line = json.dumps(answer("1", "un"))
    for content in (f"[{line}]".encode(), f"\ufeff{line}\r\n".encode(), gzip.compress(line.encode())):
        (tmp_path / "a").write_bytes(content)
        assert read_pairs(tmp_path / "a", references) == expected
    (tmp_path / "a").write_bytes(f"[{line}, ".encode())
    with pytest.raises(DataError, match=r"a: row 2: not JSON: .*, at line 1"):
        read_pairs(tmp_path / "a", references)
    (tmp_path / "a").write_bytes(line.encode("utf-16"))
    with pytest.raises(DataError, match=r"a is UTF-16.*iconv"):
        read_pairs(tmp_path / "a", references)
    (tmp_path / "a").write_bytes(gzip.compress(line.encode())[:-4])
    with pytest.raises(DataError, match=r"a: byte \d+: the file ends in the middle"):
        read_pairs(tmp_path / "a", references)
