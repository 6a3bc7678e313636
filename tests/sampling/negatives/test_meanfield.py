"""Meanfield negatives: which positions change, and to which tokens."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpo_ray.records import without_eos
from cpo_ray.sampling.negatives.meanfield import MeanfieldDraw, meanfield_draws, meanfield_negatives, union_positions
from cpo_ray.sampling.seeding import generator
from tests.sampling.example_rows import EOS
from tests.sampling.negatives.draws import VOCABULARY, golds, row_ids, seeds


@given(gold=golds, count=st.integers(1, 4), fraction=st.floats(0.01, 1.0), seed=seeds, row_id=row_ids)
def test_meanfield_changes_only_its_positions(gold, count, fraction, seed, row_id):
    draws = meanfield_draws(gold, count, fraction, seed, row_id, EOS, attempts=8)
    text = without_eos(gold, EOS)
    logits_PV = torch.from_numpy(np.random.default_rng(seed).normal(size=(len(union_positions(draws)), VOCABULARY)))
    logits_PV[:, EOS] += 20  # EOS would win every time
    negatives, redraws = meanfield_negatives(gold, draws, logits_PV.float(), EOS)
    assert 0 <= redraws <= 7 * count
    assert len(negatives) == count
    for attempts, negative in zip(draws, negatives, strict=True):
        assert {len(draw.positions) for draw in attempts} == {max(1, round(fraction * len(text)))}
        assert max(position for draw in attempts for position in draw.positions) < len(text)
        assert without_eos(negative, EOS).count(EOS) == 0
        assert (negative[-1] == EOS) == (gold[-1] == EOS)
        changed = {t for t, (old, new) in enumerate(zip(gold, negative, strict=True)) if old != new}
        assert len(changed) <= max(1, round(fraction * len(text)))
        assert any(changed <= set(draw.positions) for draw in attempts)
    assert draws[:-1] == meanfield_draws(gold, count - 1, fraction, seed, row_id, EOS, attempts=8)


def test_meanfield_follows_the_distribution_of_each_position():
    gold = [1, 2, 3, EOS]
    probabilities = torch.tensor([[0.0, 0.1, 0.2, 0.7], [0.0, 0.6, 0.3, 0.1]])
    logits_PV = (probabilities + 1e-12).log()
    draws = [MeanfieldDraw([0, 2], generator(1, f"row{i}", "meanfield", 0).random(2).tolist()) for i in range(4000)]
    negatives = np.array([meanfield_negatives(gold, [[draw]], logits_PV, EOS)[0][0] for draw in draws])
    assert (negatives[:, 1] == 2).all()
    for column, expected in zip((0, 2), probabilities, strict=True):
        shares = np.bincount(negatives[:, column], minlength=4) / len(draws)
        assert np.abs(shares - expected.numpy()).max() < 0.03


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_meanfield_accepts_the_ends_of_the_unit_interval(uniform):
    gold = [1, 2, 3]  # EOS is 3, the last of the vocabulary
    negatives, _ = meanfield_negatives(gold, [[MeanfieldDraw([0], [uniform])]], torch.zeros(1, 4), eos=3)
    assert negatives == [[0 if uniform == 0 else 2, 2, 3]]


def test_meanfield_draws_again_if_the_negative_equals_the_gold_or_another_candidate():
    gold, logits_PV = [1, 2, EOS], torch.zeros(2, 4)  # every token but EOS equally likely: a third each
    first, second, third = ([MeanfieldDraw([0], [u])] for u in (0.1, 0.5, 0.9))  # tokens 1, 2 and 3 at position 0
    other_position = [MeanfieldDraw([1], [0.9])]
    wanted = [[2, 2, EOS], [3, 2, EOS], [1, 3, EOS]]
    assert meanfield_negatives(gold, [first + second, second + third, third + other_position], logits_PV, EOS) == (
        wanted,
        3,
    )
    assert meanfield_negatives(gold, [second + third], logits_PV[:1], EOS, present=[[2, 2, EOS]]) == ([[3, 2, EOS]], 1)
    assert meanfield_negatives(gold, [first + first], logits_PV[:1], EOS) == (
        [gold],
        1,
    )  # kept, and counted by the stage


def test_every_token_of_a_cut_gold_may_be_resampled_but_never_to_eos():
    gold, logits_PV = [1, 2], torch.zeros(2, 4)
    logits_PV[:, EOS] = 30  # EOS would win every time
    (attempts,) = meanfield_draws(gold, 1, 1.0, 17, "row", EOS, attempts=1)
    assert attempts[0].positions == [0, 1]
    both = [[MeanfieldDraw([0, 1], [0.5, 0.9])]]
    assert meanfield_negatives(gold, both, logits_PV, EOS) == ([[2, 3]], 0)
    (whole,) = meanfield_draws([1, 2, EOS], 1, 1.0, 17, "row", EOS, attempts=1)
    assert whole == attempts  # the EOS of a whole gold is not a position
