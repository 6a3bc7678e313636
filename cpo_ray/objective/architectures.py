"""What a model is made of: its decoder, and what in it needs each continuation in a row of its own."""

from typing import Any

from transformers import PreTrainedModel


def decoder(model: PreTrainedModel) -> Any:
    """The part of a causal language model that gives last hidden states. Raises ValueError if there is none."""
    for part in (model.get_decoder(), model.base_model, getattr(model, "model", None)):
        if isinstance(part, PreTrainedModel) and part is not model:
            return part
    raise ValueError(f"{type(model).__name__}: it has no decoder of its own")
