import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import NoRepeatNGramLogitsProcessor

from cpo_ray.inference.seen_ngrams import SeenNgrams

VOCABULARY = 5


def test_by_hand():
    seen = SeenNgrams(3)
    assert seen.banned([1, 2]) == set()
    assert seen.banned([1, 2, 3, 1, 2]) == {3}
    assert seen.banned([1, 2, 3, 1, 2, 4, 1, 2]) == {3, 4}
    assert seen.banned([1, 2, 3, 1, 2, 4, 1, 2, 2]) == set()
    assert SeenNgrams(2).banned([7, 7]) == {7}
    assert SeenNgrams(1).banned([4, 9]) == {4, 9}
    assert SeenNgrams(1).banned([]) == set()


@given(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=20), st.integers(1, 4), st.integers(1, 20))
def test_the_banned_tokens_are_those_of_transformers_however_the_sequence_grows(tokens, n, step):
    seen, theirs = SeenNgrams(n), NoRepeatNGramLogitsProcessor(n)
    for length in [*range(1, len(tokens), step), len(tokens)]:
        scores = theirs(torch.tensor([tokens[:length]]), torch.zeros(1, VOCABULARY))[0]
        assert seen.banned(tokens[:length]) == set(torch.nonzero(scores.isneginf()).flatten().tolist())
