"""Pairs of responses to judge: two files of answers to the same prompts, joined by id."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict

from cpo_ray.errors import DataError

FIELDS = ("id", "prompt", "response")


class Pair(TypedDict):
    """Two responses to one prompt. A records.Generation is a Pair whose reference is the ground truth."""

    id: str
    prompt: str
    response: str  # the candidate's
    reference: str


def read_pairs(candidates: Path, references: Path) -> list[Pair]:
    """Join two JSONL files of {"id", "prompt", "response"} by id, in the candidates' order; other keys are ignored.

    References without a candidate are left out, so that a subset can be judged. Raises DataError with file:line for an
    invalid row or a duplicate id, and for a candidate that has no reference or a different prompt than its reference.
    """
    references_by_id = dict(_read_answers(references))
    pairs = []
    for key, row in _read_answers(candidates):
        if key not in references_by_id:
            raise DataError(f"{candidates}:{row['line']}: id {key!r} is not in {references}")
        reference = references_by_id[key]
        if reference["prompt"] != row["prompt"]:
            raise DataError(
                f"id {key!r} has one prompt at {candidates}:{row['line']} and another at {references}:{reference['line']}: "
                "their answers cannot be compared"
            )
        pairs.append(Pair(id=key, prompt=row["prompt"], response=row["response"], reference=reference["response"]))
    return pairs


def _read_answers(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (id, row with its `line` number), in order."""
    seen: dict[str, int] = {}
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        row = _parse_row(line, f"{path}:{number}")
        if row["id"] in seen:
            raise DataError(f"{path}:{number}: duplicate id {row['id']!r}, first on line {seen[row['id']]}")
        seen[row["id"]] = number
        yield row["id"], {**row, "line": number}
    if not seen:
        raise DataError(f"{path} holds no answers: expected one JSON object with {', '.join(FIELDS)} per line")


def _parse_row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{where} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object with {', '.join(FIELDS)}, not {type(row).__name__}")
    for field in FIELDS:
        if not isinstance(row.get(field), str):
            what = f"is {type(row[field]).__name__}, not text" if field in row else "is missing"
            raise DataError(f"{where}: `{field}` {what}")
        try:
            row[field].encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}: `{field}` holds half a surrogate pair, which cannot be sent as UTF-8: {error}"
            ) from None
    return row
