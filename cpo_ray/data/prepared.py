"""A source that was read and split: what `corpus.py` (instructions) and `articles.py` return to `examples.py`."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from cpo_ray.artifacts import Summary
from cpo_ray.config import DataConfig
from cpo_ray.data.rows import BadRow
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


@dataclass(frozen=True)
class PreparedSource(Generic[T]):
    """The rows of each split, in order, and a function that tokenizes some of them."""

    tokenizer: Tokenizer
    splits: dict[str, list[T]]
    tokenize: Callable[[Sequence[T]], list[UncutExample]]
    quarantined: list[BadRow]
    counts: Summary
    answers: dict[str, Any] | None = None  # of the synthetic task


def drop_bad_rows(records: Iterable[T | BadRow], data: DataConfig, quarantined: list[BadRow]) -> Iterator[T]:
    """Yield the good records. Append each BadRow to `quarantined`, or raise DataError, depending on `data.on_bad_row`."""
    for record in records:
        if not isinstance(record, BadRow):
            yield record
        elif data.on_bad_row == "quarantine":
            quarantined.append(record)
        else:
            raise DataError(
                f"{record} Repair the file, or set data.on_bad_row=quarantine to leave out and count such rows."
                if record.reason.endswith(".")
                else f"{record}. Repair the line, or set data.on_bad_row=quarantine to leave out and count such rows."
            )
