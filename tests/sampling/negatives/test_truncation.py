"""Truncation negatives: proper prefixes of the gold, of evenly distributed lengths."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpo_ray.errors import DataError
from cpo_ray.records import without_eos
from tests.sampling.example_rows import EOS, make_context
from tests.sampling.negatives.draws import drawn, golds, row_ids, seeds


def truncation_negatives(gold, count, seed, row_id):
    return drawn("truncation", make_context(gold, (), row_id), count, seed).negatives


@given(gold=golds, count=st.integers(1, 5), seed=seeds, row_id=row_ids)
def test_truncations_are_proper_prefixes_and_eos(gold, count, seed, row_id):
    text = without_eos(gold, EOS)
    if len(text) < 2:
        with pytest.raises(DataError, match=f"row {row_id}: .* cannot be truncated"):
            truncation_negatives(gold, count, seed, row_id)
        return
    negatives = truncation_negatives(gold, count, seed, row_id)
    lengths = [len(negative) for negative in negatives]
    for negative in negatives:
        assert negative == [*gold[: len(negative) - 1], EOS]
        assert 2 <= len(negative) <= len(text)
    assert len(set(lengths)) == min(count, len(text) - 1)
    assert negatives[:-1] == truncation_negatives(gold, count - 1, seed, row_id)


@pytest.mark.parametrize("gold", [[1, 2, 3, 4, 5, EOS], [1, 2, 3, 4, 5]], ids=["whole", "cut"])
def test_truncation_lengths_are_uniform(gold):
    kept = [len(truncation_negatives(gold, 1, 5, f"row{i}")[0]) - 1 for i in range(4000)]
    assert np.abs(np.bincount(kept, minlength=5)[1:] / 4000 - 1 / 4).max() < 0.04


def test_a_cut_gold_is_truncated_before_its_last_token():
    assert truncation_negatives([7, 8], 1, 5, "row") == [[7, EOS]]
    assert sorted(truncation_negatives([7, 8, 9], 2, 5, "row")) == [[7, EOS], [7, 8, EOS]]
    with pytest.raises(DataError, match="a response of 1 token cannot be truncated"):
        truncation_negatives([7], 1, 5, "row")
