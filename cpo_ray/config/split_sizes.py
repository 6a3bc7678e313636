"""Sizes of the splits: numbers of rows, or shares of all usable rows."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator

SHARES = {"train_rows": 0.8, "validation_rows": 0.1, "test_rows": 0.1}
"""The sizes of a source of rows if the configuration gives none of the three."""
WHOLE = 1 - 1e-9  # shares that add up to this are all rows


def _check_size(size: float) -> int | float:
    if isinstance(size, bool) or not (0 < size < 1 or (size >= 0 and size == int(size))):
        raise ValueError(f"a number of rows, or a share of all rows between 0 and 1, is expected, got {size!r}")
    return size if 0 < size < 1 else int(size)


def _check_not_empty(size: float) -> int | float:
    if not size:
        raise ValueError("at least one row is needed, got 0")
    return size


SplitSize = Annotated[int | float, AfterValidator(_check_size)]
FilledSplitSize = Annotated[int | float, AfterValidator(_check_size), AfterValidator(_check_not_empty)]


def is_share(size: float) -> bool:
    """Whether the size of a split is a share of all rows, not a number of rows."""
    return 0 < size < 1


def count_rows(sizes: Mapping[str, float], total: int) -> dict[str, int]:
    """Rows of each split if there are `total` usable ones.

    A share is rounded down, but is at least one row. If the shares add up to 1, the first of them (`train`) also gets the
    rows that rounding leaves, so that every row is used.
    """
    shares = [name for name, size in sizes.items() if is_share(size)]
    counts = {name: max(1, int(size * total + 1e-9)) if name in shares else int(size) for name, size in sizes.items()}
    if takes_all(sizes):
        counts[shares[0]] = max(1, total - sum(count for name, count in counts.items() if name != shares[0]))
    return counts


def takes_all(sizes: Mapping[str, float]) -> bool:
    """Whether the splits are shares that add up to all rows."""
    shares = [size for size in sizes.values() if is_share(size)]
    return sum(shares) >= WHOLE and all(is_share(size) or not size for size in sizes.values())
