"""Truncation negatives (TN, the paper's section 3): the gold cut short, then EOS."""

import numpy as np

from cpo_ray.errors import DataError
from cpo_ray.records import Tokens
from cpo_ray.sampling.negatives.context import NegativeContext

MINIMUM_TOKENS = 3
"""Two tokens and EOS: a shorter response has no proper, non-empty prefix."""


def truncation_negative(context: NegativeContext, rng: np.random.Generator) -> Tokens:
    """The first n of the gold's T tokens before EOS, n uniform in 1..T-1, then EOS. Never the gold itself.

    A row uses every n once before it uses any n again. Raises DataError for a one-token response, which cannot be truncated
    (the sampling stage leaves such rows out earlier).
    """
    gold = context.gold
    if len(gold) < MINIMUM_TOKENS:
        raise DataError(f"row {context.id}: a response of {len(gold) - 1} token(s) and EOS cannot be truncated")
    lengths = range(1, len(gold) - 1)
    this_round = context.taken[len(context.taken) - len(context.taken) % len(lengths) :]
    used = {len(negative) - 1 for negative in this_round}
    left = [kept for kept in lengths if kept not in used]
    return [*gold[: left[rng.integers(len(left))]], context.eos]
