import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from cpo_ray.config import AdapterConfig
from cpo_ray.errors import ConfigError
from cpo_ray.planning.activations import BlockShape
from cpo_ray.planning.adapter_size import adapter_size, configured_layers, model_layers

LLAMA = BlockShape("llama", hidden_size=32, intermediate_size=48, heads=2, keys=16)
GPT2 = BlockShape("gpt2", hidden_size=32, intermediate_size=128, heads=2, keys=32)


def test_a_llama_by_hand():
    """Rank 2: queries and output 32 + 32, keys and values 32 + 16, three feed-forward matrices 32 + 48, in two blocks."""
    size = adapter_size(AdapterConfig(rank=2), configured_layers(LLAMA, 2))
    assert size.trained == 2 * 2 * (2 * 64 + 2 * 48 + 3 * 80)
    assert size.linear == 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)


def test_chosen_layers():
    layers = configured_layers(GPT2, 2)
    assert adapter_size(AdapterConfig(rank=2, targets=("c_attn",)), layers).trained == 2 * 2 * (32 + 96)
    assert adapter_size(AdapterConfig(rank=2, targets=("layers.0.mlp.c_fc",)), layers).trained == 2 * (32 + 128)
    with pytest.raises(
        ConfigError, match=r"adapter\.targets: c_atn is no linear layer of the blocks; the nearest: c_attn"
    ):
        adapter_size(AdapterConfig(targets=("c_atn",)), layers)


@pytest.mark.parametrize("shape", [LLAMA, GPT2])
def test_the_shape_gives_what_the_model_has(shape):
    if shape is LLAMA:
        config = LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1,
        )  # fmt: skip
    else:
        config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert adapter_size(AdapterConfig(), model_layers(model)) == adapter_size(
        AdapterConfig(), configured_layers(shape, 2)
    )
