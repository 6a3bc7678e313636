"""Pairs of responses to judge: two files of answers to the same prompts, joined by id or by prompt."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from rich.markup import escape

from cpo_ray.errors import DataError
from cpo_ray.files.compression import DamagedFileError, open_stream
from cpo_ray.files.json_values import BrokenJsonError, is_json_lines, read_json_values
from cpo_ray.files.text import TextContent, open_text
from cpo_ray.monitoring.console import say

FIELDS = ("id", "prompt", "response")
ALPACA_EVAL = ("instruction", "output")


class Pair(TypedDict):
    """Two responses to one prompt. A records.Generation is a Pair whose reference is the ground truth."""

    id: str
    prompt: str
    response: str  # the candidate's
    reference: str


class _Place(NamedTuple):
    path: Path
    unit: str  # a line, or a row of an array
    number: int  # from 1

    def __str__(self) -> str:
        return f"{self.path}:{self.number}" if self.unit == "line" else f"{self.path}: row {self.number}"


class _Answer(NamedTuple):
    key: str  # by which answers are joined
    place: _Place
    id: str
    prompt: str
    response: str


class _Answers(NamedTuple):
    """The answers of a file. Those in alpaca_eval's format have no ids: their id is a hash of the prompt."""

    rows: list[_Answer]
    have_ids: bool


def read_pairs(candidates: Path, references: Path) -> list[Pair]:
    """Join two files of answers, in the candidates' order; prints the format of a file that is not JSON lines with ids.

    A file has rows {"id", "prompt", "response"}, or {"instruction", "output", "generator"} as alpaca_eval writes them, as
    JSON lines or as a JSON array, compressed or not; other keys are ignored. Answers are joined by id, or, if a file has no
    ids, by the prompt: the first answer to a prompt with the first one, and so on. References without a candidate are left
    out, so that a subset can be judged.

    Raises DataError with file and line (or row of an array) for an invalid row or a duplicate id, and for a candidate that
    has no reference or a different prompt than its reference.
    """
    one, other = _read_answers(references), _read_answers(candidates)
    if one.have_ids != other.have_ids:
        one, other = _join_by_prompt(one), _join_by_prompt(other)
    references_by_key = {answer.key: answer for answer in one.rows}
    pairs = []
    for answer in other.rows:
        if answer.key not in references_by_key:
            what = f"id {answer.id!r}" if other.have_ids else f"the prompt {answer.prompt[:60]!r}"
            raise DataError(f"{answer.place}: {what} is not in {references}")
        reference = references_by_key[answer.key]
        if reference.prompt != answer.prompt:
            raise DataError(
                f"id {answer.id!r} has one prompt at {answer.place} and another at {reference.place}: "
                "their answers cannot be compared"
            )
        pairs.append(Pair(id=answer.id, prompt=answer.prompt, response=answer.response, reference=reference.response))
    return pairs


def _read_answers(path: Path) -> _Answers:
    rows = list(_read_objects(path))
    if not rows:
        raise DataError(f"{path} holds no answers: expected one JSON object with {', '.join(FIELDS)} per line")
    _, first = rows[0]
    is_alpaca_eval = isinstance(first, dict) and "prompt" not in first and all(key in first for key in ALPACA_EVAL)
    if is_alpaca_eval:
        say(f"  reading {escape(str(path))} as answers of alpaca_eval: instruction is the prompt, output the response")
        return _join_by_prompt(_Answers(list(_read_alpaca_eval(rows)), have_ids=False))
    return _Answers(list(_read_rows_with_ids(rows)), have_ids=True)


def _read_rows_with_ids(rows: list[tuple[_Place, Any]]) -> Iterator[_Answer]:
    seen: dict[str, _Place] = {}
    for place, row in rows:
        key, prompt, response = _texts(row, FIELDS, place)
        if key in seen:
            raise DataError(f"{place}: duplicate id {key!r}, first on {seen[key].unit} {seen[key].number}")
        seen[key] = place
        yield _Answer(key, place, key, prompt, response)


def _read_alpaca_eval(rows: list[tuple[_Place, Any]]) -> Iterator[_Answer]:
    generator: Any = None
    for place, row in rows:
        prompt, response = _texts(row, ALPACA_EVAL, place)
        generator = generator or row.get("generator")
        if row.get("generator", generator) != generator:
            raise DataError(
                f"{place}: its generator is {row['generator']!r}, that of earlier rows {generator!r}. A file has the answers "
                "of one model: keep the rows of one generator."
            )
        yield _Answer("", place, hashlib.sha256(prompt.encode()).hexdigest()[:16], prompt, response)


def _join_by_prompt(answers: _Answers) -> _Answers:
    """The same answers with the prompt as their key, and with the number of the answer to that prompt."""
    numbers: Counter[str] = Counter()
    rows = []
    for answer in answers.rows:
        numbers[answer.prompt] += 1
        number = numbers[answer.prompt]
        name = answer.id if answers.have_ids or number == 1 else f"{answer.id}-{number}"
        rows.append(answer._replace(key=f"{number} {answer.prompt}", id=name))
    return _Answers(rows, answers.have_ids)


def _read_objects(path: Path) -> Iterator[tuple[_Place, Any]]:
    """Yield (file and line or row, value), in order."""
    try:
        with path.open("rb") as file:
            stream = open_stream(file, str(path))
            content = open_text(stream, str(path))
            yield from (_read_lines if is_json_lines(content.head) else _read_values)(content, path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except DamagedFileError as error:
        raise DataError(f"{path}: byte {error.byte}: {error}") from None


def _read_lines(content: TextContent, path: Path) -> Iterator[tuple[_Place, Any]]:
    for number, line in enumerate(content.lines, 1):
        if line.strip():
            try:
                yield _Place(path, "line", number), json.loads(line.decode().removeprefix("\ufeff"))
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}:{number} is not JSON: {error}") from None


def _read_values(content: TextContent, path: Path) -> Iterator[tuple[_Place, Any]]:
    try:
        for row, value in read_json_values(content.lines):
            yield _Place(path, "row", row), value
    except BrokenJsonError as error:
        raise DataError(f"{path}: row {error.row}: {error}, at line {error.line}") from None


def _texts(row: Any, fields: tuple[str, ...], place: _Place) -> list[str]:
    """The values of the fields, which must be text."""
    if not isinstance(row, dict):
        raise DataError(f"{place}: expected an object with {', '.join(fields)}, not {type(row).__name__}")
    for field in fields:
        if not isinstance(row.get(field), str):
            what = f"is {type(row[field]).__name__}, not text" if field in row else "is missing"
            raise DataError(f"{place}: `{field}` {what}")
        try:
            row[field].encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{place}: `{field}` holds half a surrogate pair, which cannot be sent as UTF-8: {error}"
            ) from None
    return [row[field] for field in fields]
