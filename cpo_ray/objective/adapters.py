"""Low-rank adapters (LoRA) beside the linear layers of a frozen model, by peft.

Hu et al. 2021: a layer with an adapter computes W x + (alpha / rank) B A x. W is frozen; A (rank x inputs) is random and B
(outputs x rank) is zero at first, so the model starts as the same function. The layers are replaced within the model, which
keeps its class: attention over packed groups and the chunked LM head do not change.

A model directory may hold, beside or instead of merged weights, a folder `adapter/` in peft's format, which names the base.
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cpo_ray.errors import TrainingError
from cpo_ray.objective.quantization import NF4, count_numbers, dequantize, is_quantized, quantize_nf4
from cpo_ray.records import ADAPTER, ADAPTER_CONFIG, ADAPTER_WEIGHTS

NAME = "default"  # of the only adapter in a model
QUANTIZATION = "quantization.json"  # beside peft's files if the base was quantized
PREFIX = "base_model.model."  # of tensor names in peft's files
LISTED = 5


@dataclass(frozen=True)
class LoraSettings:
    """The shape of an adapter. targets: layers, by the last part of their name or the whole name; None: all in the blocks.

    quantize: "nf4", or None for frozen weights in the model's precision.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] | None = None
    dropout: float = 0.0
    quantize: str | None = None


@dataclass(frozen=True)
class MergedWeights:
    """A model's weights with its adapter added. lost: the share of the adapter's change that rounding took away (norms)."""

    tensors: dict[str, Tensor]
    lost: float


def add_adapter(model: PreTrainedModel, settings: LoraSettings, seed: int) -> None:
    """Freeze the model, quantize it if asked to, and add an adapter that changes nothing yet; A is drawn from `seed`.

    Raises TrainingError for a target that the model does not have.
    """
    config = _lora_config(settings, find_targets(model, settings.targets))
    if settings.quantize == NF4:
        quantize_nf4(model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        _inject(model, config)


def load_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Freeze the model, quantize it if it was, and add the adapter that `save_adapter` has written to `folder`.

    Raises TrainingError for tensors that do not fit the model.
    """
    from peft import LoraConfig

    if (folder / QUANTIZATION).is_file():
        quantize_nf4(model)
    _inject(model, LoraConfig.from_pretrained(str(folder)))
    own = {_stored_name(name): tensor for name, tensor in model.state_dict().items() if is_adapter_weight(name)}
    stored = load_file(folder / ADAPTER_WEIGHTS)
    odd = sorted(own.keys() ^ stored.keys()) or sorted(name for name in own if own[name].shape != stored[name].shape)
    if odd:
        raise TrainingError(f"the adapter {folder} does not fit its base model: {', '.join(odd[:LISTED])}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(stored[name])


def save_adapter(
    model: PreTrainedModel, base: str | Path, folder: Path, weights: Mapping[str, Tensor] | None = None
) -> None:
    """Write the model's adapter into `folder`, in peft's format. base: the directory or hub id of the frozen weights.

    weights: the gathered state dict if the module's own is partitioned (ZeRO-3); None for the module's own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = model.state_dict() if weights is None else weights
    own = sorted(name for name in state if is_adapter_weight(name))
    tensors = {_stored_name(name): state[name].detach().cpu().contiguous() for name in own}
    save_file(tensors, folder / ADAPTER_WEIGHTS, {"format": "pt"})
    described = model.peft_config[NAME].to_dict() | {"base_model_name_or_path": str(base), "inference_mode": True}
    described = {
        key: sorted(value) if isinstance(value, set | frozenset) else value for key, value in described.items()
    }
    described["target_modules"] = sorted(described["target_modules"])
    (folder / ADAPTER_CONFIG).write_text(json.dumps(described, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if any(map(is_quantized, model.modules())):
        (folder / QUANTIZATION).write_text(json.dumps({"quantize": NF4}) + "\n", encoding="utf-8")


def saved_base(source: str | Path) -> str | None:
    """The base that the adapter in the model directory `source` belongs to; None if it holds no adapter."""
    file = Path(source) / ADAPTER / ADAPTER_CONFIG
    if not file.is_file():
        return None
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise TrainingError(f"{file} is not the configuration of an adapter: {error!r}") from None


def has_adapter(model: nn.Module) -> bool:
    """Whether an adapter was added to the model."""
    return getattr(model, "peft_config", None) is not None


@torch.no_grad()
def merged_weights(
    model: PreTrainedModel, weights: Mapping[str, Tensor] | None = None, *, consume: bool = False
) -> MergedWeights:
    """The state dict of the model without adapter layers: W + (alpha / rank) B A, computed in float32, on the CPU.

    A quantized W is what the layer multiplies with. consume: the model is not used afterwards, so that each of its weights is
    freed once it is merged.

    weights: as in `save_adapter`.
    """
    state = dict(model.state_dict() if weights is None else weights)
    for name, layer in model.named_modules():
        if is_quantized(layer):
            state = {key: tensor for key, tensor in state.items() if not key.startswith(f"{name}.weight")}
            state[f"{name}.weight"] = dequantize(layer)
    tensors, lost, changed = {}, 0.0, 0.0
    for name, layer in _adapted_layers(model).items():
        first, second = (state.pop(f"{name}.lora_{part}.{NAME}.weight") for part in "AB")
        weight = state.pop(f"{name}.base_layer.weight")
        wide = torch.promote_types(weight.dtype, torch.float32)
        change = layer.scaling[NAME] * (second.to(wide) @ first.to(wide))
        exact = weight.to(wide) + (change.T if layer.fan_in_fan_out else change)
        merged = exact.to(weight.dtype)
        lost += float((merged.to(wide) - exact).square().sum())
        changed += float(change.square().sum())
        tensors[f"{name}.weight"] = merged.cpu()
        if consume:
            layer.base_layer.weight.data = merged.new_empty(0)
    rest = {name.replace(".base_layer.", "."): tensor.detach().cpu() for name, tensor in state.items()}
    return MergedWeights(tensors | rest, (lost / changed) ** 0.5 if changed else 0.0)


def set_adapter_dropout(model: nn.Module, training: bool) -> None:
    """Switch the adapter's own dropout on or off, whatever the mode of the model around it."""
    for layer in _adapted_layers(model).values():
        for dropout in layer.lora_dropout.values():
            dropout.training = training


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Names of the layers that may have an adapter: linear layers but the LM head."""
    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if _is_linear(module) and module is not head]


def find_targets(model: PreTrainedModel, targets: Iterable[str] | None) -> list[str]:
    """The targets for peft: as given or, for None, the last parts of the names of all linear layers but the head.

    Raises TrainingError for a target that is no linear layer, with the nearest that are.
    """
    layers = linear_layers(model)
    kinds = sorted({name.rpartition(".")[2] for name in layers})
    if targets is None:
        if not layers:
            raise TrainingError(f"{type(model).__name__} has no linear layers for an adapter")
        others = [name for name, _ in model.named_modules() if name not in layers and name.rpartition(".")[2] in kinds]
        return layers if others else kinds
    for target in targets:
        chosen = [name for name, _ in model.named_modules() if name == target or name.endswith(f".{target}")]
        if not chosen or not set(chosen) <= set(layers):
            what = "is no linear layer of the blocks" if chosen else "does not exist"
            near = difflib.get_close_matches(target, [*kinds, *layers], n=LISTED, cutoff=0.4) or kinds
            raise TrainingError(
                f"adapter.targets: {target} {what} in {type(model).__name__}; the nearest: {', '.join(near)}"
            )
    return sorted(targets)


def describe_adapter(model: PreTrainedModel) -> str:
    """A line for the user: the layers with an adapter, and how many parameters are trained of how many."""
    layers = _adapted_layers(model)
    kinds = dict.fromkeys(name.rpartition(".")[2] for name in layers)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    whole = sum(map(count_numbers, model.parameters()))
    return (
        f"an adapter in {len(layers)} layers ({', '.join(kinds)}): {trained:,} parameters are trained, "
        f"{trained / whole:.2%} of {whole:,}"
    )


def _lora_config(settings: LoraSettings, targets: list[str]) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )


def _inject(model: PreTrainedModel, config: Any) -> None:
    from peft import inject_adapter_in_model

    config.inference_mode = False
    dtype = model.dtype
    config.fan_in_fan_out = any(isinstance(module, Conv1D) for module in model.modules())
    model.requires_grad_(False)
    inject_adapter_in_model(config, model, adapter_name=NAME)
    for layer in _adapted_layers(model).values():  # peft takes the weight's dtype: bytes if it is quantized
        layer.lora_A.to(dtype)
        layer.lora_B.to(dtype)


def _adapted_layers(model: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def is_adapter_weight(name: str) -> bool:
    """Whether a tensor of this name in a state dict is an adapter's."""
    return ".lora_A." in name or ".lora_B." in name


def _stored_name(name: str) -> str:
    return PREFIX + name.replace(f".{NAME}.weight", ".weight")
