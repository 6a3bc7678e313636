"""What the readers yield: instruction rows, articles, bad rows that cannot be used, and facts about a file."""

import hashlib
import re
from dataclasses import dataclass, field
from typing import NamedTuple

from cpo_ray.artifacts import canonical


class Place(NamedTuple):
    """Where a row stands: a line of JSON lines, otherwise a row; from 1."""

    file: str
    line: int | None
    row: int | None

    def bad(self, reason: str) -> "BadRow":
        """A BadRow at this place."""
        return BadRow(self.file, self.line, reason, row=self.row)


@dataclass(frozen=True)
class RatedAnswer:
    """One of several answers to an instruction, with what the data says of its quality: a score, or a rank."""

    text: str
    score: float | None = None  # higher is better
    rank: int = 0  # how many answers are better; only if there is no score, or after `preferences.arrange`


@dataclass(frozen=True)
class InstructionRow:
    """One instruction with its ground-truth response, before the template and the tokenizer."""

    source: str
    category: str
    instruction: str
    context: str  # empty if the row has none
    response: str
    answer: tuple[str, ...] = ()  # lower-case answer words, in order; only in the synthetic task
    ends: bool = True  # False if the response is a part of a text that goes on
    answers: tuple[RatedAnswer, ...] = ()  # of preferences: all answers, with the response first once they are arranged
    is_prompt: bool = False  # whether the instruction is a whole prompt, to which no template applies
    chat: str = ""  # of a conversation: its messages, the response last, and tools, as JSON (`chat.write_chat`)
    has_tools: bool = False  # whether the conversation has tool calls, which only a chat template can write
    key: str = ""  # rows with the same key are in the same split; empty: rows with the same prompt
    place: "Place | None" = field(default=None, compare=False)


@dataclass(frozen=True)
class Article:
    """A text to be cut into passages. Articles with the same title are in the same split."""

    title: str
    text: str


@dataclass(frozen=True)
class BadRow:
    """A line, an article or the rest of a file that cannot be used, with the reason."""

    file: str
    line: int | None  # counted from 1; None if `byte` or `row` gives the position
    reason: str
    byte: int | None = None  # offset in the stored file, so in the compressed data of a compressed file
    row: int | None = None  # of a JSON array or Parquet, counted from 1

    def __str__(self) -> str:
        unit, number = (" byte ", self.byte) if self.byte is not None else (" row ", self.row)
        where = f"{self.line}" if number is None else f"{unit}{number}"
        return f"{self.file}:{where}: {self.reason}"


@dataclass(frozen=True)
class FileFormat:
    """What a file is, by its content. A reader yields it first."""

    file: str
    format: str  # for instance "JSON lines (gzip)"

    @classmethod
    def of(cls, file: str, content: str, compression: str | None) -> "FileFormat":
        """The format of a file that has `content`, compressed or not."""
        return cls(file, f"{content} ({compression})" if compression else content)


@dataclass(frozen=True)
class ReadingCounts:
    """Counts of a file: what was left out, and why. A reader yields it last."""

    counts: dict[str, int]
    keys: tuple[str, ...] = ()  # of a row whose context is absent


def without_numbers(reason: str) -> str:
    """A reason with its numbers and quotations left out, so that rows with the same fault can be counted together."""
    return re.sub(r"\d+", "N", re.sub(r"'[^']*'|\"[^\"]*\"", "'...'", reason))


def content_hash(*parts: object) -> str:
    """Sha256 of the parts, as hex. The borders between parts count: ("ab", "c") differs from ("a", "bc")."""
    return hashlib.sha256(canonical(parts).encode()).hexdigest()
