"""Adapters on tiny models: the same function at first, the same packed and separate, applied and merged."""

import copy

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from cpo_ray.errors import TrainingError
from cpo_ray.objective.adapters import (
    LoraSettings,
    add_adapter,
    describe_adapter,
    find_targets,
    linear_layers,
    load_adapter,
    merged_weights,
    save_adapter,
    saved_base,
    set_adapter_dropout,
)
from cpo_ray.objective.attention import use_tree_attention
from cpo_ray.objective.logprobs import candidate_logps
from cpo_ray.objective.packing import pack_groups
from tests.objective.conftest import random_groups, separate_logps, tiny_model

SETTINGS = LoraSettings(rank=3, alpha=6.0)


def adapted(name, dtype, settings=SETTINGS):
    """A tiny model with an adapter that changes its function."""
    model = tiny_model(name, dtype)
    add_adapter(model, settings, seed=5)
    generator = torch.Generator().manual_seed(1)
    for weight_name, weight in model.named_parameters():
        if ".lora_B." in weight_name:
            weight.data.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return model


@torch.no_grad()
def packed_logps(model, groups):
    return candidate_logps(model, pack_groups(*groups))


def test_a_new_adapter_changes_nothing_and_only_it_is_trained(model_name):
    plain, model = tiny_model(model_name, torch.float32), tiny_model(model_name, torch.float32)
    add_adapter(model, SETTINGS, seed=5)
    groups = random_groups(seed=1)
    assert torch.equal(packed_logps(plain, groups), packed_logps(model, groups))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if ".lora_" in name}
    assert len(trained) == 2 * len(linear_layers(plain))  # A and B of every linear layer
    candidate_logps(model, pack_groups(*groups)).sum().backward()
    assert model.get_output_embeddings().weight.grad is None
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_packed_equals_separate_with_an_adapter(model_name):
    model, groups = adapted(model_name, torch.float64), random_groups(seed=2)
    separate = separate_logps(model, *groups)
    use_tree_attention(model)  # branch by branch
    assert (packed_logps(model, groups) - separate).abs().max() < 1e-9
    assert (packed_logps(tiny_model(model_name, torch.float64), groups) - separate).abs().max() > 1e-3


def test_merged_equals_applied(model_name):
    model, groups = adapted(model_name, torch.float32), random_groups(seed=3)
    merged = tiny_model(model_name, torch.float32)
    result = merged_weights(model)
    merged.load_state_dict(result.tensors)
    tokens = torch.tensor([groups[0][0] + groups[1][0][0]])
    with torch.no_grad():
        assert (model(tokens).logits - merged(tokens).logits).abs().max() < 1e-5
    assert set(result.tensors) == set(merged.state_dict())


def test_rounding_that_takes_the_change_away_is_measured():
    """1 + 2^-10 is 1 in bf16, and 1 + 2^-6 is kept: of two changes of 2^-10 and 2^-6 one is lost."""
    model = tiny_model("llama", torch.bfloat16)
    add_adapter(model, LoraSettings(rank=1, alpha=1.0, targets=("model.layers.0.self_attn.q_proj",)), seed=0)
    layer = model.model.layers[0].self_attn.q_proj
    layer.base_layer.weight.data.fill_(1.0)
    layer.lora_A["default"].weight.data.zero_()[0, 0] = 1.0
    layer.lora_B["default"].weight.data.zero_()[:2, 0] = torch.tensor([2**-10, 2**-6])
    merged = merged_weights(model)
    assert merged.tensors["model.layers.0.self_attn.q_proj.weight"][:2, 0].tolist() == [1.0, 1.0 + 2**-6]
    assert merged.lost == pytest.approx(2**-10 / (2**-20 + 2**-12) ** 0.5)


def test_an_adapter_is_saved_in_peft_s_format_and_loaded_as_it_was(model_name, tmp_path):
    model, groups = adapted(model_name, torch.float32), random_groups(seed=4)
    save_adapter(model, "some/base", tmp_path / "adapter")
    assert saved_base(tmp_path) == "some/base"
    assert saved_base(tmp_path / "elsewhere") is None
    again = tiny_model(model_name, torch.float32)
    load_adapter(again, tmp_path / "adapter")
    assert torch.equal(packed_logps(model, groups), packed_logps(again, groups))
    theirs = PeftModel.from_pretrained(tiny_model(model_name, torch.float32), str(tmp_path / "adapter"))
    tokens = torch.tensor([groups[0][0]])
    with torch.no_grad():
        assert torch.equal(theirs(tokens).logits, model(tokens).logits)
    save_adapter(again, "some/base", tmp_path / "again")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "adapter" / file).read_bytes()


def test_an_adapter_of_another_model_is_refused(tmp_path):
    save_adapter(adapted("llama", torch.float32), "base", tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert len(stored) == 2 * 14
    other = tiny_model("llama", torch.float32)
    del other.model.layers[1]
    with pytest.raises(TrainingError, match=r"does not fit its base model: base_model\.model\.model\.layers\.1\."):
        load_adapter(other, tmp_path)


def test_targets(model_name):
    model = tiny_model(model_name, torch.float32)
    llama = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert find_targets(model, None) == (["c_attn", "c_fc", "c_proj"] if model_name == "gpt2" else llama)
    one = "c_attn" if model_name == "gpt2" else "q_proj"
    assert find_targets(model, [one]) == [one]
    with pytest.raises(TrainingError, match=rf"adapter\.targets: {one}s does not exist in \w+; the nearest: {one}"):
        find_targets(model, [f"{one}s"])
    for name in ("lm_head", "wte" if model_name == "gpt2" else "embed_tokens"):
        with pytest.raises(TrainingError, match=rf"{name} is no linear layer of the blocks"):
            find_targets(model, [one, name])


def test_the_seed_decides_the_draw():
    first, second, other = (copy.deepcopy(tiny_model("llama", torch.float32)) for _ in range(3))
    before = torch.random.get_rng_state()
    for model, seed in ((first, 1), (second, 1), (other, 2)):
        add_adapter(model, SETTINGS, seed)
    assert torch.equal(before, torch.random.get_rng_state())
    weights = [model.model.layers[0].mlp.up_proj.lora_A["default"].weight for model in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_dropout_is_where_it_is_asked_for():
    model = adapted("llama", torch.float32, LoraSettings(rank=3, alpha=6.0, dropout=0.5)).eval()
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        plain = model(tokens).logits
        assert torch.equal(plain, model(tokens).logits)
        set_adapter_dropout(model, training=True)
        assert not torch.equal(model(tokens).logits, model(tokens).logits)
        set_adapter_dropout(model, training=False)
        assert torch.equal(plain, model(tokens).logits)


def test_what_is_trained_is_said():
    """Rank 3: 3 * (32 + 32) for each of two layers' queries."""
    model = tiny_model("llama-tied", torch.float32)
    add_adapter(model, LoraSettings(3, 6.0, ("q_proj",)), seed=0)
    whole = sum(parameter.numel() for parameter in model.parameters())
    line = f"an adapter in 2 layers (q_proj): 384 parameters are trained, {384 / whole:.2%} of {whole:,}"
    assert describe_adapter(model) == line


def test_in_nf4_merged_equals_applied_and_is_saved(tmp_path):
    """16 quantiles: the weights change by about a tenth of their size; what is merged is what the layers multiply with."""
    pytest.importorskip("bitsandbytes", reason="nf4 needs bitsandbytes, which is in the CUDA set")
    plain, groups = tiny_model("llama", torch.float32), random_groups(seed=6)
    model = adapted("llama", torch.float32, LoraSettings(rank=3, alpha=6.0, quantize="nf4"))
    merged = tiny_model("llama", torch.float32)
    merged.load_state_dict(merged_weights(model).tensors)
    assert (packed_logps(model, groups) - packed_logps(merged, groups)).abs().max() < 1e-4
    without = adapted("llama", torch.float32)
    assert (packed_logps(model, groups) - packed_logps(without, groups)).abs().max() > 1e-2
    assert torch.equal(model.lm_head.weight, plain.lm_head.weight)
    trained = sum(parameter.numel() for parameter in without.parameters() if parameter.requires_grad)
    whole = sum(parameter.numel() for parameter in without.parameters())
    assert describe_adapter(model).endswith(f"{trained:,} parameters are trained, {trained / whole:.2%} of {whole:,}")
    save_adapter(model, "some/base", tmp_path / "adapter")
    load_adapter(plain, tmp_path / "adapter")
    assert torch.equal(packed_logps(model, groups), packed_logps(plain, groups))
    use_tree_attention(model)
    assert (packed_logps(model, groups) - separate_logps(model, *groups)).abs().max() < 1e-4
