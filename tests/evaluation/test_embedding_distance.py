import numpy as np
import pytest

from cpo_ray.evaluation import embedding_distance
from cpo_ray.evaluation.embedding_distance import EnergyDistance, pair_similarity
from cpo_ray.evaluation.resampling import assign_groups

RNG = np.random.default_rng(1)


def brute(answers, truths, kept):
    def mean(left, right):
        return np.mean([np.linalg.norm(left[i] - right[j]) for i in kept for j in kept if i != j])

    return 2 * mean(answers, truths) - mean(answers, answers) - mean(truths, truths)


@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_energy_distance_is_its_definition_for_any_groups_that_are_kept(chunk, monkeypatch):
    monkeypatch.setattr(embedding_distance, "CHUNK_ROWS", chunk)
    answers, truths = RNG.normal(size=(30, 5)).astype(np.float32), RNG.normal(1, 1, size=(30, 5)).astype(np.float32)
    group = assign_groups(30, seed=1)
    energy = EnergyDistance(answers, truths, group)
    assert energy.of(np.ones(30, dtype=bool)) == pytest.approx(brute(answers, truths, range(30)))
    for left_out in (0, 13):
        kept = group != left_out
        assert energy.of(kept) == pytest.approx(brute(answers, truths, np.flatnonzero(kept)))


def test_energy_distance_is_zero_on_average_for_one_distribution_and_large_for_two():
    draws = RNG.normal(size=(40, 2, 50, 4)).astype(np.float32)
    group, everyone = np.zeros(50, dtype=np.int64), np.ones(50, dtype=bool)
    alike = [EnergyDistance(ours, theirs, group).of(everyone) for ours, theirs in draws]
    assert abs(np.mean(alike)) < 3 * np.std(alike) / np.sqrt(40)
    assert min(alike) < 0, "unbiased, so not always positive"
    assert EnergyDistance(draws[0, 0], draws[0, 1] + 1, group).of(everyone) > 10 * np.std(alike)


def test_one_prompt_has_no_energy_distance():
    one = np.ones((1, 3), dtype=np.float32)
    assert np.isnan(EnergyDistance(one, one, np.zeros(1, dtype=np.int64)).of(np.ones(1, dtype=bool)))
    none = np.ones((0, 3), dtype=np.float32)
    assert np.isnan(EnergyDistance(none, none, np.zeros(0, dtype=np.int64)).of(np.ones(0, dtype=bool)))


def test_similarity_is_the_cosine_and_zero_for_an_empty_answer():
    ours = np.array([[1, 0], [1, 1], [0, 0], [3, 4]], dtype=np.float32)
    truths = np.array([[2, 0], [1, 0], [1, 0], [3, 4]], dtype=np.float32)
    empty = np.array([False, False, False, True])
    assert pair_similarity(ours, truths, empty) == pytest.approx([1, 0.5**0.5, 0, 0])
