"""A source that was read and split: what `corpus.py` (instructions) and `articles.py` return to `examples.py`."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from cpo_ray.artifacts import Summary
from cpo_ray.config import DataConfig
from cpo_ray.data.rows import BadRow, FileFormat, RatedAnswer, ReadingCounts
from cpo_ray.data.tokenization import Tokenizer
from cpo_ray.errors import DataError

T = TypeVar("T")


class UncutExample(NamedTuple):
    """An example before its tokens are cut to the configured lengths."""

    id: str
    source: str
    category: str
    prompt: str
    response: str
    prompt_ids: Sequence[int]
    response_ids: Sequence[int]  # without EOS
    ends: bool = True  # False if the response is a part of a text that goes on
    is_shortened: bool = False  # a prompt for a chat template, which was too long
    differs: bool = False  # whether the chat template's own tokenization of the whole is another one
    answers: Sequence[RatedAnswer] = ()  # of preferences: the response and the other answers, best first
    answer_ids: Sequence[Sequence[int]] = ()  # of the other answers, as `response_ids`


@dataclass(frozen=True)
class PreparedSource(Generic[T]):
    """The rows of each split, in order, and a function that tokenizes some of them."""

    tokenizer: Tokenizer
    splits: dict[str, list[T]]
    tokenize: Callable[[Sequence[T]], list[UncutExample]]
    quarantined: list[BadRow]
    counts: Summary
    answers: dict[str, Any] | None = None  # of the synthetic task


@dataclass
class SourceLog:
    """What reading a source found besides its rows."""

    data: DataConfig
    quarantined: list[BadRow] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)  # files by format
    counts: Counter[str] = field(default_factory=Counter)  # of ReadingCounts
    keys: tuple[str, ...] = ()  # of a row whose context is absent

    def rows(self, records: Iterable[T | FileFormat | BadRow | ReadingCounts]) -> Iterator[T]:
        """Yield the good records and keep the others. Raises DataError for a BadRow, unless the data quarantines them."""
        for record in records:
            if isinstance(record, FileFormat):
                self.formats[record.format] += 1
            elif isinstance(record, ReadingCounts):
                self.counts.update(record.counts)
                self.keys = self.keys or record.keys
            elif isinstance(record, BadRow):
                self._quarantine(record)
            else:
                yield record

    def add(self, other: "SourceLog") -> None:
        """Add what another source found."""
        self.quarantined += other.quarantined
        self.formats += other.formats
        self.counts += other.counts
        self.keys = self.keys or other.keys

    @property
    def summary(self) -> Summary:
        """The formats and the counts, for the stage's summary."""
        formats = {"formats": dict(sorted(self.formats.items()))} if self.formats else {}
        return {**formats, **{key: n for key, n in sorted(self.counts.items()) if n}}

    def _quarantine(self, record: BadRow) -> None:
        if self.data.on_bad_row == "quarantine":
            self.quarantined.append(record)
            return
        raise DataError(
            f"{record} Repair the file, or set data.on_bad_row=quarantine to leave out and count such rows."
            if record.reason.endswith(".")
            else f"{record}. Repair the line, or set data.on_bad_row=quarantine to leave out and count such rows."
        )
