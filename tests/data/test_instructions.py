import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpo_ray.config import FieldsConfig
from cpo_ray.data.instructions import read_instructions
from cpo_ray.data.rows import BadRow, InstructionRow
from cpo_ray.errors import DataError

ALPACA = FieldsConfig(instruction="instruction", context="input", response="output")
CHAT = FieldsConfig(instruction="question", response="answer", category="topic")
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def read(content: bytes, fields: FieldsConfig = CHAT) -> list[InstructionRow | BadRow]:
    return list(read_instructions(io.BytesIO(content), "qa.jsonl", fields, "instructions"))


def test_fields_follow_the_configuration() -> None:
    line = json.dumps({"instruction": "Add.", "input": " 1 2 ", "output": "3", "extra": None}).encode()
    assert read(line, ALPACA) == [InstructionRow("instructions", "", "Add.", "1 2", "3")]
    line = json.dumps({"question": "Why?", "answer": "So.", "topic": "life"}).encode()
    assert read(line) == [InstructionRow("instructions", "life", "Why?", "", "So.")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"question": "Why?", "answer": "So', "not JSON: Unterminated string .* the line ends .*So"),
        (b'{"question": "Why?", "answer": "caf\xe9", "topic": ""}', "not UTF-8: byte 0xe9 at position 35"),
        (b'{"question": "Why?"}', "missing key answer, topic; found question"),
        (b"{}", "missing key question, answer, topic; found none"),
        (b'{"question": "Why?", "answer": " ", "topic": ""}', "empty answer"),
        (b'{"question": "", "answer": "", "topic": ""}', "empty question, answer"),
        (b'{"question": "Why?", "answer": 3, "topic": ""}', "answer must be text, not int"),
        (b'{"question": "Why?", "answer": "\\ud800", "topic": ""}', "answer has half a surrogate pair"),
        (b'"a"', "a JSON object is expected, not str"),
    ],
)
def test_a_bad_line_is_named_by_number_and_field(line: bytes, reason: str) -> None:
    good = b'{"question": "a", "answer": "b", "topic": "c"}\n'
    first, bad, last = read(good + line + b"\r\n" + good)
    assert (type(first), type(last)) == (InstructionRow, InstructionRow)
    assert re.search(rf"^qa\.jsonl:2: {reason}", str(bad))


@given(st.lists(st.tuples(TEXT, TEXT)))
def test_every_text_is_read_or_reported(pairs: list[tuple[str, str]]) -> None:
    lines = [json.dumps({"question": q, "answer": a, "topic": ""}, ensure_ascii=False) for q, a in pairs]
    content = "\n".join(["", *lines]).encode() or b"\n"
    if not lines:
        return
    records = read(content)
    assert len(records) == len(pairs)
    for number, (record, (question, answer)) in enumerate(zip(records, pairs, strict=True), 2):
        if isinstance(record, InstructionRow):
            assert (record.instruction, record.response) == (question.strip(), answer.strip())
        else:
            assert record.line == number
            assert "empty" in record.reason
            assert not question.strip() or not answer.strip()


@given(st.lists(st.binary(max_size=40).filter(lambda line: b"\n" not in line and line.strip()), min_size=1))
def test_any_bytes_give_one_record_a_line(lines: list[bytes]) -> None:
    reported = [record.line for record in read(b"\n".join(lines)) if isinstance(record, BadRow)]
    assert reported == list(range(1, len(lines) + 1))


@pytest.mark.parametrize("content", [b"", b"\n\n", b" \r\n\t\n"])
def test_a_file_without_a_line_is_an_error(content: bytes) -> None:
    with pytest.raises(DataError, match=r"qa\.jsonl is empty"):
        read(content)
