"""Batch negatives (BN, the paper's section 3): responses of other prompts of the same batch."""

from collections.abc import Iterable, Sequence

from cpo_ray.errors import DataError
from cpo_ray.sampling.seeding import generator

Tokens = list[int]


def distinct(responses: Iterable[Sequence[int]]) -> list[Tokens]:
    """The different responses of a batch, in the order they first occur: equal texts are equal tokens."""
    return [list(tokens) for tokens in dict.fromkeys(tuple(response) for response in responses)]


def batch_negatives(gold: Tokens, pool: Sequence[Tokens], count: int, seed: int, row_id: str) -> list[Tokens]:
    """Draw `count` different responses from `pool`, the distinct responses of the row's batch, never the row's own.

    Negative j does not depend on `count`. Raises DataError where the batch has too few other responses.
    """
    others = [tokens for tokens in pool if tokens != gold]
    if len(others) < count:
        raise DataError(
            f"row {row_id}: {count} batch negatives need {count} different responses of other rows, but its batch has "
            f"{len(others)}. Raise sampling.batch_rows or lower sampling.negatives.batch."
        )
    return [others.pop(generator(seed, row_id, "batch", index).integers(len(others))) for index in range(count)]
