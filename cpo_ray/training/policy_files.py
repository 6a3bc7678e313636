"""The policy from and to model directories: a whole model, or a frozen base with its adapter."""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from cpo_ray.objective.adapters import (
    LoraSettings,
    add_adapter,
    describe_adapter,
    has_adapter,
    merged_weights,
    save_adapter,
    saved_base,
)
from cpo_ray.objective.pretrained import load_adapted, load_model
from cpo_ray.records import ADAPTER
from cpo_ray.training.models import export_model, export_without_weights
from cpo_ray.training.task import Task


def load_policy(task: Task, notify: Callable[[str], None]) -> PreTrainedModel:
    """The model to train, on the CPU. With `task.adapter`, all but its adapter is frozen; a notice says what is trained."""
    precision, dropout, adapter = task.training.precision, task.training.dropout, task.adapter
    if adapter is None:
        return load_model(task.model, precision, dropout=dropout)
    if task.continue_adapter:
        model = load_adapted(task.model, precision, dropout=dropout)
    else:
        model = load_model(task.model, precision, dropout=dropout)
    if not has_adapter(model):
        targets = None if adapter.targets == "auto" else adapter.targets
        settings = LoraSettings(adapter.rank, adapter.alpha, targets, adapter.dropout, adapter.quantize)
        add_adapter(model, settings, task.seed)
    notify(describe_adapter(model))
    return model


def write_policy(
    model: PreTrainedModel, weights: Mapping[str, Tensor] | None, task: Task, folder: Path, *, whole: bool = False
) -> None:
    """Write a Hugging Face directory: a whole model or, of an adapter's training, the folder `adapter/` in place of weights.

    weights: the gathered state dict if the module's own is partitioned (ZeRO-3). whole: with merged weights besides.
    """
    if task.adapter is not None:
        base = (saved_base(task.model) if task.continue_adapter else None) or task.model
        save_adapter(model, base, folder / ADAPTER, weights)
        if not whole:
            export_without_weights(model, task.model, folder, task.tokenizer)
            return
        weights = merged_weights(model, weights).tensors
    export_model(model, None if weights is None else dict(weights), task.model, folder, task.tokenizer)
