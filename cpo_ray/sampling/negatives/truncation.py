"""Truncation negatives (TN, the paper's section 3): the gold cut short, then EOS."""

import numpy as np

from cpo_ray.errors import DataError
from cpo_ray.sampling.negatives.context import Source, Tokens

MINIMUM_TOKENS = 3
"""Two tokens and EOS: a shorter response has no proper prefix that says anything."""


def truncation_negative(source: Source, rng: np.random.Generator) -> Tokens:
    """Keep the first n of the gold's T tokens before EOS, n uniform in 1..T-1, then EOS: never the gold itself.

    The n of a row differ until all T-1 have been used; then they begin anew. Raises DataError for a one-token response,
    which cannot be truncated (the stage leaves such rows out before).
    """
    gold = source.gold
    if len(gold) < MINIMUM_TOKENS:
        raise DataError(f"row {source.id}: a response of {len(gold) - 1} token(s) and EOS cannot be truncated")
    lengths = range(1, len(gold) - 1)
    this_round = source.taken[len(source.taken) - len(source.taken) % len(lengths) :]
    used = {len(negative) - 1 for negative in this_round}
    left = [kept for kept in lengths if kept not in used]
    return [*gold[: left[rng.integers(len(left))]], source.eos]
