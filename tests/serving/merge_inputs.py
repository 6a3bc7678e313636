"""Fixtures of two models that can be merged, and their weights."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from cpo_ray.inference.weight_files import WEIGHTS


def read_weights(model: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(model.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def save_weights(model: Path, weights: dict[str, torch.Tensor]) -> None:
    save_file(weights, model / WEIGHTS, metadata={"format": "pt"})
