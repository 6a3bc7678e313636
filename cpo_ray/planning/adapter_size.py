"""The parameters of an adapter: how many are trained, and how many of the frozen ones are in the layers that `nf4` shrinks."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cpo_ray.config import AdapterConfig
from cpo_ray.errors import ConfigError
from cpo_ray.planning.activations import BlockShape

LinearLayers = Mapping[str, tuple[int, int]]  # name -> (inputs, outputs)


@dataclass(frozen=True)
class AdapterSize:
    """trained: numbers of the adapter. linear: numbers of all linear layers but the LM head, with or without an adapter."""

    trained: int
    linear: int


def adapter_size(adapter: AdapterConfig, layers: LinearLayers) -> AdapterSize:
    """rank * (inputs + outputs) for each target. Raises ConfigError for a target that is none of the layers."""
    if adapter.targets == "auto":
        chosen = set(layers)
    else:
        chosen = {name for target in adapter.targets for name in _find(target, layers)}
    return AdapterSize(
        trained=sum(adapter.rank * sum(layers[name]) for name in chosen),
        linear=sum(inputs * outputs for inputs, outputs in layers.values()),
    )


def configured_layers(shape: BlockShape, blocks: int) -> LinearLayers:
    """The linear layers of a model by its shape. Queries and keys may have different widths in a Llama."""
    d, i, keys = shape.hidden_size, shape.intermediate_size, shape.keys
    if shape.architecture == "llama":
        attention = {"q_proj": (d, d), "k_proj": (d, keys), "v_proj": (d, keys), "o_proj": (d, d)}
        block = attention | {"gate_proj": (d, i), "up_proj": (d, i), "down_proj": (i, d)}
    else:
        block = {"attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d), "mlp.c_fc": (d, i), "mlp.c_proj": (i, d)}
    return {f"layers.{number}.{name}": sizes for number in range(blocks) for name, sizes in block.items()}


def model_layers(model: Any) -> LinearLayers:
    """The linear layers of a transformers model but its LM head, also of one on PyTorch's meta device."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    found = {}
    for name, module in model.named_modules():
        if module is not head and isinstance(module, nn.Linear | Conv1D):
            inputs, outputs = module.weight.shape
            found[name] = (int(inputs), int(outputs))
    return found


def _find(target: str, layers: LinearLayers) -> list[str]:
    found = [name for name in layers if name == target or name.endswith(f".{target}")]
    if not found:
        kinds = sorted({name.rpartition(".")[2] for name in layers})
        near = difflib.get_close_matches(target, kinds, cutoff=0.4) or kinds
        raise ConfigError(f"adapter.targets: {target} is no linear layer of the blocks; the nearest: {', '.join(near)}")
    return found
