"""Model directories that hold an adapter in place of weights."""

from pathlib import Path

from cpo_ray.records import ADAPTER


def is_adapter_alone(model: Path) -> bool:
    """Whether a model directory holds an adapter without the weights of its base."""
    return (model / ADAPTER).is_dir() and not any(model.glob("*.safetensors"))
