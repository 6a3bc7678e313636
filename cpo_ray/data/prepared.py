"""What the two kinds of sources, instructions and articles, hand to the stage."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from cpo_ray.artifacts import Summary
from cpo_ray.config import DataConfig
from cpo_ray.data.rows import BadRow
from cpo_ray.data.tokenization import Tokenizer
from cpo_ray.errors import DataError

T = TypeVar("T")


class Draft(NamedTuple):
    """An example before its tokens are cut to the configured lengths."""

    id: str
    source: str
    category: str
    prompt: str
    response: str
    prompt_ids: Sequence[int]
    response_ids: Sequence[int]  # without EOS


@dataclass(frozen=True)
class Material(Generic[T]):
    """The rows of each split, in order, and how to make examples of some of them."""

    tokenizer: Tokenizer
    splits: dict[str, list[T]]
    draft: Callable[[Sequence[T]], list[Draft]]
    quarantined: list[BadRow]
    counts: Summary
    answers: dict[str, Any] | None = None  # of the synthetic task


def take_good(records: Iterable[T | BadRow], data: DataConfig, quarantined: list[BadRow]) -> Iterator[T]:
    """Pass on what is no BadRow; append those to `quarantined`, or raise DataError where the configuration says so."""
    for record in records:
        if not isinstance(record, BadRow):
            yield record
        elif data.on_bad_row == "quarantine":
            quarantined.append(record)
        else:
            raise DataError(
                f"{record} Mend the file, or set data.on_bad_row=quarantine to leave such rows out, counted."
                if record.reason.endswith(".")
                else f"{record}. Mend the line, or set data.on_bad_row=quarantine to leave such rows out, counted."
            )
