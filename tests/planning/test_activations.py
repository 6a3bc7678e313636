import pytest
from transformers import GPT2Config, LlamaConfig, Qwen2Config

from cpo_ray.planning.activations import BlockShape, block_bytes, count_block_bytes

OPENLLAMA_3B = BlockShape("llama", 3200, 8640, 32, 3200)
GPT2_XL = BlockShape("gpt2", 1600, 6400, 25, 1600)


def test_the_papers_models_in_bf16():
    assert block_bytes(OPENLLAMA_3B, "bf16") == 24 * 3200 + 8 * 8640 + 4 * 32 + 8 == 146_056
    assert block_bytes(GPT2_XL, "bf16") == 16 * 1600 + 10 * 6400 + 4 * 25 + 16 == 89_716
    assert block_bytes(GPT2_XL, "bf16", dropout=True) == 20 * 1600 + 10 * 6400 + 4 * 25 + 16 == 96_116


def llama(shape):
    return LlamaConfig(
        vocab_size=64,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.keys * shape.heads // shape.hidden_size,
        num_hidden_layers=7,
    )


def gpt2(shape):
    width, inner, heads = shape.hidden_size, shape.intermediate_size, shape.heads
    return GPT2Config(vocab_size=64, n_embd=width, n_inner=inner, n_head=heads, n_layer=7)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", [OPENLLAMA_3B, BlockShape("llama", 96, 200, 6, 32)])
def test_the_formula_is_what_a_llama_keeps(shape, precision):
    counted = count_block_bytes(llama(shape), precision)
    assert counted == block_bytes(shape, precision) == count_block_bytes(llama(shape), precision, dropout=True)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("dropout", [True, False])
@pytest.mark.parametrize("shape", [GPT2_XL, BlockShape("gpt2", 64, 100, 4, 64)])
def test_the_formula_is_what_a_gpt2_keeps(shape, precision, dropout):
    assert count_block_bytes(gpt2(shape), precision, dropout=dropout) == block_bytes(shape, precision, dropout=dropout)


def test_an_architecture_without_a_formula_is_counted():
    """A Qwen2 has the tensors of a Llama; its biases keep nothing."""
    qwen = Qwen2Config(
        vocab_size=64,
        hidden_size=96,
        intermediate_size=200,
        num_attention_heads=6,
        num_key_value_heads=2,
        num_hidden_layers=5,
    )
    assert count_block_bytes(qwen, "bf16") == block_bytes(BlockShape("llama", 96, 200, 6, 32), "bf16")
