"""Truncation negatives (TN, the paper's section 3): the gold cut short, then EOS."""

import numpy as np

from cpo_ray.errors import DataError
from cpo_ray.records import Tokens
from cpo_ray.sampling.negatives.context import NegativeContext

MINIMUM_TOKENS = 2
"""Before EOS: a shorter response has no proper, non-empty prefix."""


def truncation_negative(context: NegativeContext, rng: np.random.Generator) -> Tokens:
    """The first n of the gold's T tokens, EOS not counted, n uniform in 1..T-1, then EOS. Never the gold itself.

    A gold that was cut has no EOS and goes on after its last token too; n = T is left out all the same, so that no negative
    is longer than its gold. A row uses every n once before it uses any n again. Raises DataError for a one-token response,
    which cannot be truncated (the sampling stage leaves such rows out earlier).
    """
    body = context.body
    if len(body) < MINIMUM_TOKENS:
        raise DataError(f"row {context.id}: a response of {len(body)} token cannot be truncated")
    lengths = range(1, len(body))
    this_round = context.taken[len(context.taken) - len(context.taken) % len(lengths) :]
    used = {len(negative) - 1 for negative in this_round}
    left = [kept for kept in lengths if kept not in used]
    return [*body[: left[rng.integers(len(left))]], context.eos]
