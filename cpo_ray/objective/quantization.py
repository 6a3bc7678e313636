"""Frozen linear layers in 4 bits: NF4 of QLoRA (Dettmers and others 2023, section 3), by bitsandbytes.

A weight becomes one of 16 values, the quantiles of a normal distribution, times the largest absolute weight of its block of 64.
Weights are quantized on the CPU, wherever they are used later, so that every process has the same.
"""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from cpo_ray.errors import TrainingError

NF4 = "nf4"


def quantize_nf4(model: PreTrainedModel) -> None:
    """Replace the linear layers but the LM head, in place. Their products are computed in the model's precision.

    Raises TrainingError if bitsandbytes is missing, and for a model whose layers are not `nn.Linear`.
    """
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError:
        raise TrainingError(
            "adapter.quantize nf4 needs the package bitsandbytes, which is in the CUDA set (make install GPU=1): "
            "pip install bitsandbytes, or leave adapter.quantize out"
        ) from None
    dtype = model.dtype
    for name, layer in quantized_layers(model).items():
        small = Linear4bit(layer.in_features, layer.out_features, layer.bias is not None, dtype, quant_type=NF4)
        small.weight = Params4bit(layer.weight.data, requires_grad=False, quant_type=NF4, module=small).to("cpu")
        if layer.bias is not None:
            small.bias = layer.bias
        # Without gradients, bitsandbytes would multiply in bf16 on some CPUs: scores would be another function than the policy.
        small.support_avx512bf16_for_cpu = False
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, small)


def quantized_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The layers that `quantize_nf4` replaces, by name. Raises TrainingError if there are none, as in GPT-2 (`Conv1D`)."""
    head = model.get_output_embeddings()
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    if not layers:
        raise TrainingError(
            f"adapter.quantize nf4: {type(model).__name__} has no layers of the kind nn.Linear: leave adapter.quantize out"
        )
    return layers


def is_quantized(layer: nn.Module) -> bool:
    """Whether a layer's own weight is in 4 bits, not that of a layer in it."""
    weight = dict(layer.named_parameters(recurse=False)).get("weight")
    return getattr(weight, "quant_state", None) is not None


def dequantize(layer: Any) -> Tensor:
    """The weight that a quantized layer multiplies with, in its dtype before quantization."""
    from bitsandbytes.functional import dequantize_4bit

    weight: Tensor = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return weight


def count_numbers(parameter: Tensor) -> int:
    """Numbers that a parameter stands for: two in each byte if it is quantized."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()
