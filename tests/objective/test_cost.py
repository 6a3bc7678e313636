import pytest
import torch
from hypothesis import given
from torch.utils.flop_counter import FlopCounterMode

from cpo_ray.objective.cost import GroupSize, measure_group, model_shape
from cpo_ray.objective.logprobs import source_hidden
from cpo_ray.objective.packing import grow_tree, pack_groups
from tests.objective.conftest import random_groups, tiny_model
from tests.objective.test_packing import groups


@given(groups)
def test_the_measured_size_is_that_of_the_tree(group):
    prompt, candidates = group
    tree = grow_tree(prompt, candidates)
    pairs = sum(position + 1 for position in tree.positions)
    assert measure_group(prompt, candidates) == GroupSize(len(tree.tokens), pairs, len(set(tree.sources)))


def test_flops_equal_those_that_torch_counts(model_name):
    """One dense row, for which torch counts the whole square of pairs."""
    prompts, candidates = random_groups(seed=12, groups=1)
    packed = pack_groups(prompts, candidates)
    model, tokens = tiny_model(model_name, torch.float32), packed.tokens
    model.set_attn_implementation("eager")  # the counter does not support every SDPA kernel on CPU
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        source_hidden(model, packed)
    shape = model_shape(model)
    assert shape.per_source == 2 * 97 * 32
    by_hand = shape.forward_flops(GroupSize(tokens, tokens * tokens, 0))
    assert counter.get_total_flops() == pytest.approx(by_hand, rel=0.01)
