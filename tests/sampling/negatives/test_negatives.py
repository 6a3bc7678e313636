"""Properties of the negatives that are pure functions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpo_ray.config import SamplingConfig
from cpo_ray.errors import DataError
from cpo_ray.sampling.negatives.autoregressive import autoregressive_negative, repeated, sampling_parameters
from cpo_ray.sampling.negatives.batch import distinct
from cpo_ray.sampling.negatives.meanfield import MeanfieldDraw, meanfield_draws, meanfield_negatives, union_positions
from cpo_ray.sampling.negatives.registry import DRAWN, Limits, draw_kind
from cpo_ray.sampling.seeding import draw_seed, generator
from tests.sampling.made_rows import encode, make_source

EOS = 0
VOCABULARY = 12

tokens = st.lists(st.integers(1, VOCABULARY - 1), min_size=1, max_size=30)
golds = tokens.map(lambda body: [*body, EOS])
seeds = st.integers(0, 2**31)
row_ids = st.text("0123456789abcdef", min_size=1, max_size=16)


LIMITS = Limits(max_tokens=64, eos=EOS, vocabulary=VOCABULARY, encode=encode)


def drawn(kind, source, count, seed, present=(), redraws=7):
    return draw_kind(kind, DRAWN[kind], count, source, present, seed, redraws, LIMITS)


def batch_negatives(gold, pool, count, seed, row_id):
    return drawn("batch", make_source(gold, pool, row_id), count, seed).negatives


def truncation_negatives(gold, count, seed, row_id):
    return drawn("truncation", make_source(gold, (), row_id), count, seed).negatives


def test_seed_depends_on_each_part_and_is_pinned():
    base = (17, "row", "batch", 0)
    others = [(18, "row", "batch", 0), (17, "row1", "batch", 0), (17, "row", "truncation", 0), (17, "row", "batch", 1)]
    assert len({draw_seed(*parts) for parts in [base, *others]} | {draw_seed(*base, attempt=1)}) == 6
    assert draw_seed(*base) == 0x140F009A59F06503
    assert generator(*base).integers(1000) == generator(*base).integers(1000)


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


@given(gold=golds, count=st.integers(1, 5), seed=seeds, row_id=row_ids)
def test_truncations_are_proper_prefixes_and_eos(gold, count, seed, row_id):
    if len(gold) < 3:
        with pytest.raises(DataError, match=f"row {row_id}: .* cannot be truncated"):
            truncation_negatives(gold, count, seed, row_id)
        return
    negatives = truncation_negatives(gold, count, seed, row_id)
    lengths = [len(negative) for negative in negatives]
    for negative in negatives:
        assert negative == [*gold[: len(negative) - 1], EOS]
        assert 2 <= len(negative) < len(gold)
    assert len(set(lengths)) == min(count, len(gold) - 2)
    assert negatives[:-1] == truncation_negatives(gold, count - 1, seed, row_id)


def test_truncation_lengths_are_uniform():
    gold = [1, 2, 3, 4, 5, EOS]
    kept = [len(truncation_negatives(gold, 1, 5, f"row{i}")[0]) - 1 for i in range(4000)]
    assert np.abs(np.bincount(kept, minlength=5)[1:] / 4000 - 1 / 4).max() < 0.04


@given(gold=golds, count=st.integers(1, 4), fraction=st.floats(0.01, 1.0), seed=seeds, row_id=row_ids)
def test_meanfield_changes_only_its_positions(gold, count, fraction, seed, row_id):
    draws = meanfield_draws(gold, count, fraction, seed, row_id, tries=8)
    logits_PV = torch.from_numpy(np.random.default_rng(seed).normal(size=(len(union_positions(draws)), VOCABULARY)))
    logits_PV[:, EOS] += 20  # EOS would win every time
    negatives, redraws = meanfield_negatives(gold, draws, logits_PV.float())
    assert 0 <= redraws <= 7 * count
    assert len(negatives) == count
    for tries, negative in zip(draws, negatives, strict=True):
        assert {len(draw.positions) for draw in tries} == {max(1, round(fraction * (len(gold) - 1)))}
        assert max(position for draw in tries for position in draw.positions) < len(gold) - 1
        assert negative.count(EOS) == 1
        assert negative[-1] == EOS
        changed = {t for t, (old, new) in enumerate(zip(gold, negative, strict=True)) if old != new}
        assert len(changed) <= max(1, round(fraction * (len(gold) - 1)))
        assert any(changed <= set(draw.positions) for draw in tries)
    assert draws[:-1] == meanfield_draws(gold, count - 1, fraction, seed, row_id, tries=8)


def test_meanfield_follows_the_distribution_of_each_position():
    gold = [1, 2, 3, EOS]
    probabilities = torch.tensor([[0.0, 0.1, 0.2, 0.7], [0.0, 0.6, 0.3, 0.1]])
    logits_PV = (probabilities + 1e-12).log()
    draws = [MeanfieldDraw([0, 2], generator(1, f"row{i}", "meanfield", 0).random(2).tolist()) for i in range(4000)]
    negatives = np.array([meanfield_negatives(gold, [[draw]], logits_PV)[0][0] for draw in draws])
    assert (negatives[:, 1] == 2).all()
    for column, expected in zip((0, 2), probabilities, strict=True):
        shares = np.bincount(negatives[:, column], minlength=4) / len(draws)
        assert np.abs(shares - expected.numpy()).max() < 0.03


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_meanfield_survives_the_ends_of_the_unit_interval(uniform):
    gold = [1, 2, 3]  # EOS is 3, the last of the vocabulary
    negatives, _ = meanfield_negatives(gold, [[MeanfieldDraw([0], [uniform])]], torch.zeros(1, 4))
    assert negatives == [[0 if uniform == 0 else 2, 2, 3]]


def test_meanfield_draws_again_what_equals_the_gold_or_an_earlier_one():
    gold, logits_PV = [1, 2, EOS], torch.zeros(2, 4)  # every token but EOS equally likely: a third each
    first, second, third = ([MeanfieldDraw([0], [u])] for u in (0.1, 0.5, 0.9))  # tokens 1, 2 and 3 at position 0
    there = [MeanfieldDraw([1], [0.9])]
    wanted = [[2, 2, EOS], [3, 2, EOS], [1, 3, EOS]]
    assert meanfield_negatives(gold, [first + second, second + third, third + there], logits_PV) == (wanted, 3)
    assert meanfield_negatives(gold, [second + third], logits_PV[:1], present=[[2, 2, EOS]]) == ([[3, 2, EOS]], 1)
    assert meanfield_negatives(gold, [first + first], logits_PV[:1]) == ([gold], 1)  # kept, and counted by the stage


@given(body=tokens)
def test_a_sample_gets_eos_where_the_model_stopped_and_none_at_the_length_limit(body):
    assert autoregressive_negative(body, "stop", EOS) == [*body, EOS]
    assert autoregressive_negative([*body, EOS], "stop", EOS) == [*body, EOS]
    assert autoregressive_negative(body, "length", EOS) == body


def test_sampling_parameters_are_the_papers_and_seeded_by_row():
    config = SamplingConfig.model_validate({"negatives": {"autoregressive": 11, "batch": 0}})
    first, again, other = (
        sampling_parameters(config, 64, EOS, 17, row_id, vocabulary=1024, n=11, attempt=0) for row_id in ("a", "a", "b")
    )
    assert first == again
    assert first["seed"] != other["seed"]
    assert 0 <= first["seed"] < 2**62
    assert (first["n"], first["top_k"], first["temperature"], first["max_tokens"]) == (11, 50, 1.0, 64)
    once_more = sampling_parameters(config, 64, EOS, 17, "a", vocabulary=20, n=2, attempt=1)
    assert (once_more["n"], once_more["top_k"]) == (2, 20)
    assert once_more["seed"] != first["seed"]


def test_samples_that_repeat_a_candidate_or_each_other_are_found():
    gold, batch = [1, 2, EOS], [3, EOS]
    samples = [[4, EOS], [1, 2, EOS], [4, EOS], [3, EOS], [5, 5]]
    assert repeated(samples, [gold, batch]) == [1, 2, 3]
    assert repeated([], [gold]) == []
