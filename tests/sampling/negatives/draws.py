"""Hypothesis strategies for golds, and draws of the shipped kinds."""

from hypothesis import strategies as st

from cpo_ray.sampling.negatives.registry import SHIPPED, Limits, draw_kind
from tests.sampling.example_rows import EOS, encode

VOCABULARY = 12
LIMITS = Limits(max_tokens=64, eos=EOS, vocabulary=VOCABULARY, encode=encode)

tokens = st.lists(st.integers(1, VOCABULARY - 1), min_size=1, max_size=30)
golds = st.builds(lambda body, is_cut: body if is_cut else [*body, EOS], tokens, st.booleans())
seeds = st.integers(0, 2**31)
row_ids = st.text("0123456789abcdef", min_size=1, max_size=16)


def drawn(kind, context, count, seed, present=(), redraws=7):
    return draw_kind(kind, SHIPPED[kind], count, context, present, seed, redraws, LIMITS)
