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
class BadRow:
    """A line that cannot be used, and why."""

    file: str
    line: int  # counted from 1
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


def content_hash(*parts: object) -> str:
    """Sha256 of the parts, as hex. Parts cannot run into each other: ("ab", "c") differs from ("a", "bc")."""
    return hashlib.sha256(canonical(parts).encode()).hexdigest()
