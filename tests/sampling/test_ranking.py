"""Ranks are a permutation that follows similarity."""

import itertools
from types import SimpleNamespace

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from cpo_ray.inference.embedding import load_embedder
from cpo_ray.sampling.ranking import Ranker, rank_by_similarity, round_similarity

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


def ranks_of(cosines):
    return rank_by_similarity([round_similarity(cosine) for cosine in cosines])


def test_rounding_errors_of_embeddings_do_not_change_ranks():
    """A text and the same text in capitals have equal embeddings, except for noise that depends on the batch."""
    assert ranks_of([1.0, 0.95697927, 0.2, 0.95697939]) == [0, 1, 3, 2]
    assert ranks_of([1.0, 0.95697939, 0.2, 0.95697927]) == [0, 1, 3, 2]
    assert ranks_of([1.0, 0.9569, 0.2, 0.9570]) == [0, 2, 3, 1]


def test_a_chain_of_near_ties_has_the_order_of_the_rounded_values():
    """Steps of 0.9e-5 round to three values of five decimals. With steps of 0.4e-5 the first two round to one value."""
    noise = 1e-7
    for shift in (-noise, 0.0, noise):
        assert ranks_of([1.0, 0.5 + shift, 0.500009 - shift, 0.500018 + shift]) == [0, 3, 2, 1]
        assert ranks_of([1.0, 0.5 + shift, 0.500004 - shift, 0.500008 + shift]) == [0, 2, 3, 1]


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=12))
def test_the_order_of_two_candidates_does_not_depend_on_a_third(cosines):
    ranks = ranks_of([1.0, *cosines])
    without_last = ranks_of([1.0, *cosines[:-1]])
    kept = range(len(cosines))
    assert sorted(kept, key=ranks.__getitem__) == sorted(kept, key=without_last.__getitem__)


@given(st.lists(st.floats(-1.0000002, 1.0000002), min_size=1, max_size=12))
def test_the_stored_float32_explains_the_rank(cosines):
    stored = pa.array([round_similarity(cosine) for cosine in [1.0, *cosines]], pa.float32()).to_pylist()
    ranks = ranks_of([1.0, *cosines])
    by_rank = sorted(range(1, len(ranks)), key=ranks.__getitem__)
    assert by_rank == sorted(by_rank, key=lambda k: (-stored[k], k))
    assert max(stored) <= 1.0


def test_similarities_do_not_depend_on_the_units_that_came_before():
    """Bit for bit: the order in which units reach an actor is another one in every run."""
    texts = [[f"{'word ' * (n % 5)}number {n} of unit {unit % 2}" for n in range(12)] for unit in range(3)]

    def ranked(order):
        ranker = Ranker.__new__(Ranker)
        ranker.embedder = load_embedder("minilm", "cpu")
        ranker.tokenizer = SimpleNamespace(batch_decode=lambda ids, skip_special_tokens: ids)
        groups = {unit: {"candidate_ids": texts[unit], "rank": [], "score": None} for unit in order}
        for unit in order:
            ranker._rank([groups[unit]])
        return [groups[unit]["similarity"] for unit in range(3)]

    assert ranked([0, 1, 2]) == ranked([2, 1, 0]) == ranked([1, 0, 2])


def test_ranks_of_the_data_stay_and_negatives_are_worse_than_all_its_answers():
    assert rank_by_similarity([1.0, 0.2, 0.9, 0.3, 0.8], [0, 0, 2]) == [0, 0, 2, 4, 3]
    assert rank_by_similarity([1.0, 0.2, 0.9], [0, 1, 1]) == [0, 1, 1]
