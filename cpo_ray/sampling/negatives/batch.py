"""Batch negatives (BN, the paper's section 3): responses of other prompts of the same batch."""

from collections.abc import Iterable, Sequence

import numpy as np

from cpo_ray.errors import DataError
from cpo_ray.sampling.negatives.context import Source, Tokens


def distinct(responses: Iterable[Sequence[int]]) -> list[Tokens]:
    """The different responses of a batch, in the order they first occur: equal texts are equal tokens."""
    return [list(tokens) for tokens in dict.fromkeys(tuple(response) for response in responses)]


def batch_negative(source: Source, rng: np.random.Generator) -> Tokens:
    """One of the other rows' responses that this row has not taken yet, all equally likely: never the row's own text.

    Raises DataError where none is left.
    """
    left = [tokens for tokens in source.others if tokens not in source.taken]
    if not left:
        raise too_few(source.id, len(source.others))
    return left[rng.integers(len(left))]


def too_few(row_id: str, there: int) -> DataError:
    """The error for a row whose batch has `there` different responses of other rows."""
    return DataError(
        f"row {row_id}: the other rows of its batch have {there} different responses, fewer than sampling.negatives.batch. "
        "Raise sampling.batch_rows or lower sampling.negatives.batch."
    )
