"""Tied weights that are stored all the same: an LM head in a file although config.json ties it to the embedding.

transformers 5.19 does not tie two stored tensors with different values, and vLLM 0.32 ignores the stored head. So a copy
must be equal.
"""

from pathlib import Path
from typing import Any

import torch

from cpo_ray.serving.comparison import CONFIG, read_object
from cpo_ray.serving.config_comparison import LoadError, load_config
from cpo_ray.serving.safetensors_files import StoredTensor

HEADS = ("lm_head.weight", "embed_out.weight")  # how transformers names an LM head


def find_copies(model: Path, tensors: dict[str, StoredTensor]) -> dict[str, str]:
    """Name of each stored tensor that config.json ties to another stored one -> the other's name.

    Empty if transformers cannot load the configuration, or does not know the architecture as a causal language model.
    """
    heads = [name for name in tensors if name.endswith(HEADS)]
    if not heads or read_object(model / CONFIG).get("tie_word_embeddings") is False:
        return {}
    try:
        config = load_config(model)
    except LoadError:
        return {}  # compared as stored: a tensor in one model alone is a difference
    if not getattr(config.get_text_config(), "tie_word_embeddings", False):
        return {}
    return {copy: source for copy, source in _tied_names(config, tensors).items() if copy in tensors}


def explain_unequal(model: Path, copy: StoredTensor, source: StoredTensor, names: tuple[str, str]) -> str | None:
    """Why a stored copy contradicts the tensor that it is tied to; None if both are equal. `names`: copy, source."""
    if (copy.shape, copy.dtype) == (source.shape, source.dtype) and all(
        torch.equal(*pair) for pair in zip(copy.blocks(), source.blocks(), strict=True)
    ):
        return None
    return (
        f"{names[0]}: {model / CONFIG} ties it to {names[1]}, but both are stored and their values differ: transformers uses "
        "both, vLLM the embedding alone. Delete the tensor, or set tie_word_embeddings to false"
    )


def _tied_names(config: Any, tensors: dict[str, StoredTensor]) -> dict[str, str]:
    """Name of each tied tensor -> the stored name of the tensor that it repeats, from the model's code, without its weights."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config)
    except ValueError:  # not a causal language model
        return {}
    names = {}
    for copy, source in model.all_tied_weights_keys.items():
        short = source.removeprefix(f"{model.base_model_prefix}.")  # as in the hub's `gpt2`
        stored = next((name for name in (source, short) if name in tensors), None)
        if stored is not None:
            names[copy] = stored
    return names
