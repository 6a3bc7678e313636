import pytest
import torch

from cpo_ray.objective import architectures
from cpo_ray.objective.architectures import Layout, layout_of, set_layout
from cpo_ray.objective.attention import use_tree_attention
from cpo_ray.objective.check import (
    NotComputable,
    choose_groups,
    example_groups,
    fall_back,
    first_not_finite,
    level_of,
    separate_logps,
    settle_layout,
)
from cpo_ray.objective.logprobs import candidate_logps
from cpo_ray.objective.packing import pack_groups
from tests.objective import conftest
from tests.objective.conftest import random_groups, tiny_model
from tests.objective.tiny_models import tiny_architecture


def settled(model, groups=None):
    prompts, candidates = choose_groups(*(groups or random_groups(seed=51)))
    return settle_layout(model, prompts, candidates)


def is_right(model, tolerance=1e-3):
    prompts, candidates = random_groups(seed=52)
    with torch.no_grad():
        packed = candidate_logps(model, pack_groups(prompts, candidates))
    torch.testing.assert_close(packed, separate_logps(model, prompts, candidates), rtol=tolerance, atol=tolerance)


def test_the_longest_and_the_shortest_group_are_compared():
    prompts, candidates = random_groups(seed=50, groups=9)
    chosen, groups = choose_groups(prompts, candidates)
    sizes = [len(p) + max(map(len, group)) for p, group in zip(prompts, candidates, strict=True)]
    assert [len(p) + max(map(len, g)) for p, g in zip(chosen, groups, strict=True)] in (
        [max(sizes), min(sizes)], [min(sizes), max(sizes)],
    )  # fmt: skip
    assert {len(group) for group in groups} == {4}
    assert choose_groups([[1]], [[[2]]]) == ([[1]], [[[2]] * 4])


@torch.no_grad()
def test_the_definition_is_the_models_own_forward_pass(model_name):
    model, groups = tiny_model(model_name, torch.float64), random_groups(seed=53)
    torch.testing.assert_close(separate_logps(model, *groups), conftest.separate_logps(model, *groups))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_packed_exactly_stays_packed(model_name, dtype):
    model = tiny_model(model_name, dtype)
    use_tree_attention(model)
    assert settled(model) is None
    assert layout_of(model) == Layout()


@pytest.mark.parametrize("name", ["mamba", "lfm2", "qwen3_next", "minimax", "bloom"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_architecture_that_nobody_knows_is_found_out(name, dtype, monkeypatch):
    """As if nothing were known of state spaces and the rest: the numbers alone show them."""
    monkeypatch.setattr(architectures, "_reasons", lambda *_, **__: iter(()))
    model = tiny_architecture(name, dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 3  # a random model of small weights hardly mixes tokens: bf16's noise would be larger
    use_tree_attention(model)
    notice = settled(model)
    assert "each continuation is computed in a row of its own" in notice
    assert "log-probs differ from separate rows by" in notice or "does not take packed rows" in notice
    if dtype == torch.float32:
        is_right(model)


def test_a_head_that_nobody_knows_falls_back_to_the_models_logits():
    model = tiny_model("llama", torch.float32)
    model.lm_head.register_forward_hook(lambda module, _, logits: logits * 2)
    use_tree_attention(model)
    assert "log-probs differ" in settled(model)
    assert level_of(model) == 3
    is_right(model)


def test_attention_that_nobody_knows_falls_back_to_the_models_own(monkeypatch):
    from transformers.models.llama import modeling_llama

    own = modeling_llama.eager_attention_forward
    model = tiny_model("llama", torch.float32)
    model.set_attn_implementation("eager")
    interface = modeling_llama.ALL_ATTENTION_FUNCTIONS

    def with_bias(attention):
        return lambda *tensors, **options: attention(*tensors, **options | {"position_bias": torch.zeros(())})

    monkeypatch.setattr(
        type(interface), "get_interface",
        lambda self, name, default: own if name == "eager" else with_bias(self[name]),
    )  # fmt: skip
    use_tree_attention(model)
    assert "LlamaAttention asks for attention with position_bias" in settled(model)
    assert level_of(model) == 2
    is_right(model)


def test_a_model_that_is_not_the_same_function_twice_is_refused():
    model = tiny_model("llama", torch.float32)
    use_tree_attention(model)
    model.model.norm.register_forward_hook(lambda module, _, hidden: hidden + torch.randn_like(hidden))
    with pytest.raises(NotComputable, match="LlamaForCausalLM: in rows of their own, packed log-probs differ"):
        settled(model)


def test_another_workers_finding_is_followed():
    model = tiny_model("llama", torch.float32)
    use_tree_attention(model)
    fall_back(model, 1, "another worker found a difference")
    assert level_of(model) == 1
    assert "another worker" in layout_of(model).notice
    is_right(model)


def test_examples_fit_the_model(model_name):
    model = tiny_model(model_name, torch.float32)
    prompts, candidates = example_groups(model)
    assert max(len(p) + len(c) for p, g in zip(prompts, candidates, strict=True) for c in g) == 128
    assert settle_layout(model, prompts, candidates) is None


def test_training_mode_survives_the_check():
    model = tiny_model("gpt2", torch.float32)
    model.train()
    model.transformer.h[0].eval()
    before = [module.training for module in model.modules()]
    settled(model)
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize("layout", [Layout(), Layout("a test asks for it")])
def test_the_layer_that_is_first_not_finite_is_named(layout):
    model = tiny_model("llama", torch.float32)
    set_layout(model, layout)
    packed = pack_groups(*random_groups(seed=54))
    assert first_not_finite(model, packed) is None
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.inf
    assert first_not_finite(model, packed) == "Linear (model.layers.1.mlp.up_proj)"
    assert settled(model) == layout.notice  # left to whoever names the row
