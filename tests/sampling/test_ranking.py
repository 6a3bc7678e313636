"""Ranks are a permutation that follows similarity."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from cpo_ray.sampling.ranking import rank_by_similarity

similarities = st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 0.9, 1.0]), min_size=1, max_size=12).map(
    lambda negatives: [1.0, *negatives]
)


@given(similarities)
def test_ranks_are_a_permutation_with_the_gold_first(similarity):
    ranks = rank_by_similarity(similarity)
    assert sorted(ranks) == list(range(len(similarity)))
    assert ranks[0] == 0
    by_rank = sorted(range(1, len(similarity)), key=ranks.__getitem__)
    assert [similarity[k] for k in by_rank] == sorted(similarity[1:], reverse=True)
    for k, later in itertools.pairwise(by_rank):
        assert similarity[k] > similarity[later] or k < later


def test_a_candidate_as_similar_as_the_gold_comes_after_it():
    assert rank_by_similarity([1.0, 0.3, 1.0, 0.3]) == [0, 2, 1, 3]


def test_the_noise_of_an_embedding_decides_nothing():
    """The same text in capitals embeds alike, but for what it is batched with."""
    assert rank_by_similarity([1.0, 0.95697927, 0.2, 0.95697939]) == [0, 1, 3, 2]
    assert rank_by_similarity([1.0, 0.95697939, 0.2, 0.95697927]) == [0, 1, 3, 2]
    assert rank_by_similarity([1.0, 0.9569, 0.2, 0.9570]) == [0, 2, 3, 1]
