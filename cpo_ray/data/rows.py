"""What a source yields: rows, and lines that are no rows."""

import hashlib
from dataclasses import dataclass

from cpo_ray.artifacts import canonical


@dataclass(frozen=True)
class Row:
    """One instruction with its ground-truth response, before the template and the tokenizer."""

    source: str
    category: str
    instruction: str
    context: str  # empty where the row has none
    response: str
    answer: tuple[str, ...] = ()  # lower-case answer words, in order; only the synthetic task knows them


@dataclass(frozen=True)
class Article:
    """A text to be cut into passages. Articles of one title stay on one side of the split."""

    title: str
    text: str


@dataclass(frozen=True)
class BadRow:
    """A line, an article or the rest of a file that cannot be used, and why."""

    file: str
    line: int | None  # counted from 1; None where `byte` says where
    reason: str
    byte: int | None = None  # offset in the file as it is stored: compressed, for a compressed one

    def __str__(self) -> str:
        where = f"{self.line}" if self.byte is None else f" byte {self.byte}"
        return f"{self.file}:{where}: {self.reason}"


def content_hash(*parts: object) -> str:
    """Sha256 of the parts, as hex. Parts cannot run into each other: ("ab", "c") differs from ("a", "bc")."""
    return hashlib.sha256(canonical(parts).encode()).hexdigest()
