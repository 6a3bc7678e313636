import numpy as np
import torch

from cpo_ray.objective.packing import pack_groups
from cpo_ray.training.scheduled_sampling import pack_copies, sample_copies, uniform_draws

PROMPTS = [[1, 2], [3]]
GOLDS = [[10, 11, 12, 0], [20, 21, 0]]


def numbered(packed, uniform_ES):
    """A model that always samples 100 plus the target at each edge."""
    sampled_ES = torch.zeros(uniform_ES.shape, dtype=torch.long)
    sampled_ES[packed.member_edge_M] = (100 + torch.tensor([t for gold in GOLDS for t in gold]))[:, None]
    return sampled_ES


def draws(sequences=3):
    return [uniform_draws(5, 0, row, sequences, len(gold)) for row, gold in enumerate(GOLDS)]


def test_replaced_tokens_are_sampled_and_the_last_is_kept():
    copies = sample_copies(numbered, PROMPTS, GOLDS, draws(), 0.5)
    for gold, group, draw in zip(GOLDS, copies, draws(), strict=True):
        for copy, chance in zip(group, draw[0], strict=True):
            expected = [100 + token if c < 0.5 else token for token, c in zip(gold, chance, strict=True)]
            assert copy == [*expected[:-1], gold[-1]]
    assert any(copy != gold for gold, group in zip(GOLDS, copies, strict=True) for copy in group)


def test_probability_one_replaces_all_but_the_last():
    copies = sample_copies(numbered, PROMPTS, GOLDS, draws(), 1.0)
    assert copies == [[[110, 111, 112, 0]] * 3, [[120, 121, 0]] * 3]


def test_draws_depend_on_seed_step_and_row():
    assert np.array_equal(uniform_draws(5, 2, 7, 3, 4), uniform_draws(5, 2, 7, 3, 4))
    for other in (uniform_draws(6, 2, 7, 3, 4), uniform_draws(5, 3, 7, 3, 4), uniform_draws(5, 2, 8, 3, 4)):
        assert not np.array_equal(uniform_draws(5, 2, 7, 3, 4), other)


def test_copies_are_the_inputs_and_the_gold_is_the_target():
    packed = pack_copies(PROMPTS, GOLDS, [[[110, 11, 12, 0]] * 3, [[20, 121, 0]] * 3])
    plain = pack_groups(PROMPTS, [[gold] for gold in GOLDS])
    assert 110 in packed.input_ids_RN.flatten().tolist()
    assert 110 not in packed.edge_target_E.tolist()
    assert set(packed.edge_target_E.tolist()) == set(plain.edge_target_E.tolist())
