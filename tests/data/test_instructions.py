import gzip
import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpo_ray.config import FieldsConfig
from cpo_ray.data.instructions import read_instructions
from cpo_ray.data.rows import BadRow, FileFormat, InstructionRow, ReadingCounts
from cpo_ray.errors import DataError
from cpo_ray.files.text import BOM

ALPACA = FieldsConfig(instruction="instruction", context="input", response="output")
CHAT = FieldsConfig(instruction="question", response="answer", category="topic")
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def read_all(content: bytes, fields: FieldsConfig = CHAT) -> list[FileFormat | InstructionRow | BadRow | ReadingCounts]:
    return list(read_instructions(io.BytesIO(content), "qa.jsonl", fields, "instructions"))


def read(content: bytes, fields: FieldsConfig = CHAT) -> list[InstructionRow | BadRow]:
    return [record for record in read_all(content, fields) if isinstance(record, InstructionRow | BadRow)]


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
        (b'{"question": null, "answer": "So", "topic": ""}', "question must be text, not NoneType"),
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


@given(
    st.lists(
        st.binary(max_size=40).filter(lambda line: b"\n" not in line and line.removeprefix(BOM).strip()), min_size=1
    )
)
def test_any_bytes_give_one_record_a_line(lines: list[bytes]) -> None:
    """After a first line that makes the file JSON lines."""
    reported = [record.line for record in read(b"\n".join([b"{}", *lines])) if isinstance(record, BadRow)]
    assert reported == list(range(1, len(lines) + 2))


@pytest.mark.parametrize("content", [b"", b"\n\n", b" \r\n\t\n"])
def test_a_file_without_a_line_is_an_error(content: bytes) -> None:
    with pytest.raises(DataError, match=r"qa\.jsonl is empty"):
        read(content)


@pytest.mark.parametrize("context", [{}, {"input": None}, {"input": ""}, {"input": "  "}])
def test_a_context_that_is_absent_or_null_is_empty(context: dict[str, str | None]) -> None:
    line = json.dumps({"instruction": "Add.", "output": "3", **context}).encode()
    *rows, counts = read_all(line, ALPACA)[1:]
    assert rows == [InstructionRow("instructions", "", "Add.", "", "3")]
    assert isinstance(counts, ReadingCounts)
    assert counts.counts == ({} if context else {"rows_without_context_key": 1})
    assert counts.keys == (() if context else ("instruction", "output"))


def test_a_bom_and_crlf_are_no_content() -> None:
    line = json.dumps({"instruction": "Add.", "input": "", "output": "3"})
    row = InstructionRow("instructions", "", "Add.", "", "3")
    assert read(f"\ufeff{line}\r\n\r\n{line}\r\n\ufeff{line}\r\n".encode(), ALPACA) == [row] * 3
    assert read(f"\ufeff[\r\n{line},\r\n{line}\r\n]\r\n".encode(), ALPACA) == [row] * 2
    with pytest.raises(DataError, match="is empty"):
        read("\ufeff".encode())


def test_utf16_is_named_and_not_quarantined() -> None:
    with pytest.raises(DataError, match=r"qa\.jsonl is UTF-16, not UTF-8\. Convert it: iconv -f UTF-16 -t UTF-8"):
        read('{"question": "a"}'.encode("utf-16"))


def test_rows_of_an_array_are_named_by_their_number() -> None:
    content = b'[\n{"question": "a", "answer": "b", "topic": "c"},\n{"question": "a"},\n3,\n{"question"]'
    good, *bad = read(content)
    assert isinstance(good, InstructionRow)
    assert [str(row) for row in bad] == [
        "qa.jsonl: row 2: missing key answer, topic; found question",
        "qa.jsonl: row 3: a JSON object is expected, not int",
        "qa.jsonl: row 4: not JSON: Expecting ':' delimiter, at line 5. The rest of the file is lost.",
    ]


def test_a_lost_rest_of_a_compressed_file_is_reported_with_its_byte() -> None:
    content = gzip.compress(b'{"question": "a", "answer": "b", "topic": "c"}\n' * 3000)[:-9]
    *rows, bad = read(content)
    assert len(rows) > 1000
    assert isinstance(bad, BadRow)
    assert str(bad) == (
        f"qa.jsonl: byte {len(content)}: the file ends in the middle of its gzip data: it is truncated. "
        "The rest of the file is lost."
    )
