"""Bytes that a transformer block keeps for its backward pass, per token: by formula, or counted in a model.

Symbols: b bytes per number (4 in fp32, 2 in bf16), D hidden size, I feed-forward width, H heads, G the width of keys (and of
values), which is D without grouped queries. Attention's scores are not kept, as in FlexAttention: only the log-sum-exp of
each query, 4 H bytes. Tensors of all blocks together (position embeddings, masks) are not counted.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

BYTES = {"fp32": 4, "bf16": 2}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ATTENTION = "cpo_ray_count"  # the name under which transformers looks up `_attend`
TOKENS = 64


@dataclass(frozen=True)
class BlockShape:
    """The widths of a transformer block. keys: G, as above."""

    architecture: Literal["llama", "gpt2"]
    hidden_size: int
    intermediate_size: int
    heads: int
    keys: int


def block_bytes(shape: BlockShape, precision: str, *, dropout: bool = False) -> float:
    """Bytes per token and block, by formula.

    Llama: two RMSNorms, each with its float32 input 4D, the normalized values b*D and the result b*D; queries and the output
    of attention b*D each, keys and values b*G each; gate, silu(gate), up and their product b*I each; 4H, and 4 bytes per norm:
        2*(4 + 2b)*D + b*(2D + 2G) + 4*b*I + 4H + 8         = 146,056 for OpenLlama-3B in bf16
    GPT-2: two LayerNorms with input and result, queries, keys, values and output b*D each; five tensors of the feed-forward
    block, because transformers composes `gelu_new` of single operations; 4H, and mean and deviation of each norm:
        8*b*D + 5*b*I + 4H + 16                              = 89,716 for GPT2-XL in bf16
    With dropout, a mask after attention and one after the feed-forward block: 2*b*D more (GPT2-XL: 96,116). On CUDA a mask
    takes one byte per number, so that is an upper bound. A Llama has no such dropout.
    """
    b, d, i, heads = BYTES[precision], shape.hidden_size, shape.intermediate_size, shape.heads
    if shape.architecture == "llama":
        return 2 * (4 + 2 * b) * d + b * (2 * d + 2 * shape.keys) + 4 * b * i + 4 * heads + 8
    return (10 if dropout else 8) * b * d + 5 * b * i + 4 * heads + 16


def count_block_bytes(config: Any, precision: str, *, dropout: bool = False) -> float:
    """Bytes per token and block of the model that a transformers configuration describes, counted.

    Runs one and two blocks on PyTorch's meta device, which computes no numbers, and counts the storages that autograd keeps.

    Raises ValueError, RuntimeError or NotImplementedError for a model that does not run there.
    """
    return (_kept_bytes(config, 2, precision, dropout) - _kept_bytes(config, 1, precision, dropout)) / TOKENS


def _kept_bytes(config: Any, blocks: int, precision: str, dropout: bool) -> int:
    model = _build(config, blocks, precision, dropout)
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}  # noqa: SLF001
    kept: dict[int, Tensor] = {}  # by storage; keeps the tensors, so that no other storage gets the same address

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata  # noqa: SLF001 - data_ptr() is 0 on the meta device
        if storage not in own:
            kept[storage] = tensor
        return tensor

    ids = torch.zeros(1, TOKENS, dtype=torch.long, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.get_decoder()(input_ids=ids, position_ids=ids, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _build(config: Any, blocks: int, precision: str, dropout: bool) -> Any:
    """A model of so many blocks, without numbers, in training mode."""
    from transformers import AttentionInterface, AutoModelForCausalLM

    AttentionInterface.register(ATTENTION, _attend)
    config = deepcopy(config)
    config.num_hidden_layers = blocks
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:blocks]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[precision], attn_implementation=ATTENTION)
    for module in model.modules():
        if isinstance(module, nn.Dropout) and not dropout:
            module.p = 0.0
    return model.train()


class _Attention(torch.autograd.Function):
    """Keeps what FlexAttention keeps, and computes nothing."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows, heads, tokens, _ = query.shape
        out = query.new_empty(rows, tokens, heads, value.shape[-1]).transpose(1, 2)
        normalizer = query.new_empty(rows, heads, tokens, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, normalizer)
        return out


def _attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:  # noqa: ARG001
    out: Tensor = _Attention.apply(query, key, value)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2), None
