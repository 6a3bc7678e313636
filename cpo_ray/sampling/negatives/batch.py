"""Batch negatives (BN, the paper's section 3): responses of other prompts of the same batch."""

from collections.abc import Iterable, Sequence

import numpy as np

from cpo_ray.errors import DataError
from cpo_ray.records import Tokens
from cpo_ray.sampling.negatives.context import NegativeContext


def distinct(responses: Iterable[Sequence[int]]) -> list[Tokens]:
    """The distinct responses of a batch, in order of first occurrence. Responses are compared by tokens."""
    return [list(tokens) for tokens in dict.fromkeys(tuple(response) for response in responses)]


def batch_negative(context: NegativeContext, rng: np.random.Generator) -> Tokens:
    """A response of another row that this row has not used yet, all equally likely. Never the row's own text.

    Raises DataError if none is left.
    """
    left = [tokens for tokens in context.others if tokens not in context.taken]
    if not left:
        raise too_few_responses(context.id, len(context.others))
    return left[rng.integers(len(left))]


def too_few_responses(row_id: str, available: int) -> DataError:
    """The error for a row whose batch has only `available` distinct responses of other rows."""
    return DataError(
        f"row {row_id}: the other rows of its batch have {available} different responses, fewer than "
        "sampling.negatives.batch. Raise sampling.batch_rows or lower sampling.negatives.batch."
    )
