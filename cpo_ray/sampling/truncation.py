"""Truncation negatives (TN, the paper's section 3): the gold cut short, then EOS."""

from cpo_ray.errors import DataError
from cpo_ray.sampling.seeding import generator

Tokens = list[int]

MINIMUM_TOKENS = 3
"""Two tokens and EOS: a shorter response has no proper prefix that says anything."""


def truncation_negatives(gold: Tokens, count: int, seed: int, row_id: str) -> list[Tokens]:
    """Keep the first n of the gold's T tokens before EOS, n uniform in 1..T-1, then EOS: never the gold itself.

    The n of a row differ until all T-1 have been used; then they begin anew. Negative j does not depend on `count`.
    Raises DataError for a one-token response, which cannot be truncated (the stage leaves such rows out before).
    """
    if len(gold) < MINIMUM_TOKENS:
        raise DataError(f"row {row_id}: a response of {len(gold) - 1} token(s) and EOS cannot be truncated")
    *_, eos = gold
    lengths: list[int] = []
    negatives = []
    for index in range(count):
        lengths = lengths or list(range(1, len(gold) - 1))
        kept = lengths.pop(generator(seed, row_id, "truncation", index).integers(len(lengths)))
        negatives.append([*gold[:kept], eos])
    return negatives
