"""The weighted mean of adapters of one base, as an adapter: sum_i w_i s_i B_i A_i is [w_1 s_1 B_1, ...] [A_1; ...], exactly.

Its rank is the sum of the ranks. A mean of the As and Bs themselves would be another function.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cpo_ray.artifacts import Summary, write_atomically, write_json
from cpo_ray.errors import ArtifactError
from cpo_ray.records import ADAPTER, ADAPTER_CONFIG, ADAPTER_WEIGHTS
from cpo_ray.serving.comparison import Differences, read_object
from cpo_ray.serving.config_comparison import compare_configs
from cpo_ray.serving.tokenizer_comparison import compare_tokenizers

FIRST, SECOND = ".lora_A.weight", ".lora_B.weight"
OWN = {"r", "lora_alpha", "lora_dropout"}  # keys of an adapter's configuration in which averaged adapters may differ
LISTED = 10


def average_adapters(models: Sequence[tuple[Path, float]], out: Path) -> Summary:
    """Write `out/adapter`, the mean of the adapters of `models`: (directory, weight). Adapters with weight 0 are left out.

    Scales alpha / rank become part of B, whose values are float32. Returns {"tensors", "parameters", "rank"}.

    Raises ArtifactError if tokenizers, configs, bases or layers with an adapter differ (lists the first ten differences), and
    for values that are not finite.
    """
    (template, _), *others = models
    for other, _ in others:
        _check_same_base(other, template)
    used = [(folder / ADAPTER, weight) for folder, weight in models if weight]
    adapters = [(_read(folder), weight * _scale(folder)) for folder, weight in used]
    averaged: dict[str, Tensor] = {}
    for name in adapters[0][0]:
        if name.endswith(FIRST):
            averaged[name] = torch.cat([tensors[name].float() for tensors, _ in adapters])
        else:
            averaged[name] = torch.cat([scale * tensors[name].float() for tensors, scale in adapters], dim=1)
    rank = max(tensor.shape[0] for name, tensor in averaged.items() if name.endswith(FIRST))
    (out / ADAPTER).mkdir(parents=True, exist_ok=True)
    with write_atomically(out / ADAPTER / ADAPTER_WEIGHTS) as temporary:
        save_file({name: averaged[name].contiguous() for name in sorted(averaged)}, temporary, {"format": "pt"})
    config = read_object(template / ADAPTER / ADAPTER_CONFIG) | {"r": rank, "lora_alpha": rank, "lora_dropout": 0.0}
    write_json(out / ADAPTER / ADAPTER_CONFIG, config)
    return {
        "tensors": len(averaged),
        "parameters": sum(tensor.numel() for tensor in averaged.values()),
        "rank": rank,
    }


def _check_same_base(model: Path, other: Path) -> None:
    found = Differences()
    found.add(compare_tokenizers(model, other))
    found.add(compare_configs(model, other))
    ours, theirs = (_settings(folder) for folder in (model, other))
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            found.refused.append(
                f"{ADAPTER_CONFIG}: {key}: {ours.get(key)!r} in {model}, {theirs.get(key)!r} in {other}"
            )
    tensors, others = (_read(folder / ADAPTER) for folder in (model, other))
    for name in sorted(tensors.keys() ^ others.keys()):
        found.refused.append(f"{name}: only in {model if name in tensors else other}")
    if found.refused:
        lines = "\n".join(f"  {difference}" for difference in found.refused[:LISTED])
        raise ArtifactError(f"the adapters of {model} and {other} cannot be averaged:\n{lines}")


def _settings(model: Path) -> dict[str, Any]:
    config = read_object(model / ADAPTER / ADAPTER_CONFIG)
    return {key: value for key, value in config.items() if key not in OWN}


def _scale(adapter: Path) -> float:
    config = read_object(adapter / ADAPTER_CONFIG)
    return float(config["lora_alpha"]) / float(config["r"])


def _read(adapter: Path) -> dict[str, Tensor]:
    tensors = load_file(adapter / ADAPTER_WEIGHTS)
    for name, tensor in tensors.items():
        if not name.endswith((FIRST, SECOND)):
            raise ArtifactError(f"{adapter / ADAPTER_WEIGHTS} holds {name}, which is no matrix of LoRA")
        if not torch.isfinite(tensor).all():
            raise ArtifactError(f"{name}: {adapter / ADAPTER_WEIGHTS} holds NaN or infinite weights")
    return tensors
