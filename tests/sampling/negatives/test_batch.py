"""Batch negatives: distinct, never the gold, evenly chosen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpo_ray.errors import DataError
from cpo_ray.sampling.negatives.batch import distinct
from tests.sampling.example_rows import EOS, make_context
from tests.sampling.negatives.draws import drawn, golds, seeds


def batch_negatives(gold, pool, count, seed, row_id):
    return drawn("batch", make_context(gold, pool, row_id), count, seed).negatives


@given(responses=st.lists(golds, min_size=1, max_size=12), count=st.integers(1, 4), seed=seeds)
def test_batch_negatives_are_distinct_others_or_an_error(responses, count, seed):
    pool = distinct(responses)
    for index, gold in enumerate(responses):
        if len(pool) - 1 < count:
            with pytest.raises(DataError, match=f"row r{index}: .* have {len(pool) - 1} different"):
                batch_negatives(gold, pool, count, seed, f"r{index}")
            continue
        negatives = batch_negatives(gold, pool, count, seed, f"r{index}")
        assert len(negatives) == count == len(distinct(negatives))
        assert gold not in negatives
        assert all(negative in responses for negative in negatives)
        assert negatives[:-1] == batch_negatives(gold, pool, count - 1, seed, f"r{index}")


def test_batch_negatives_choose_evenly():
    pool = [[token, EOS] for token in range(1, 5)]
    drawn = [batch_negatives(pool[0], pool, 1, 3, f"row{i}")[0][0] for i in range(3000)]
    shares = np.bincount(drawn, minlength=5)[2:] / 3000
    assert np.abs(shares - 1 / 3).max() < 0.04
