"""How a model computes packed groups: as token trees, or with each continuation in a row of its own.

Trees are exact where tokens meet in attention alone, by the masks of `masks`. State spaces, convolutions and linear attention
mix tokens by their place in the row, and some attentions are out of our reach. Those models get ordinary rows, prompt and
one continuation in each, with their own masks: the same log-probs, at the cost of padded concatenation at most.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from cpo_ray.objective.head import UnknownHead, lm_head
from cpo_ray.objective.rotary import length_limit, rotate_by_length

ATTENTION = {"full_attention", "sliding_attention", "chunked_attention", "attention", "moe", "mlp", "sparse", "dense"}
# Old models whose attention is code of their own, and adds the mask that it is given: without windows and ALiBi.
PLAIN_MASK = {"gptj", "codegen", "falcon"}
MIXERS = re.compile("Mamba|SSM|DeltaNet|Lightning|LinearAttention|Recurrent|Rwkv|LSTM|ShortConv|Retention")


@dataclass(frozen=True)
class Layout:
    """How a model computes packed groups."""

    separate: str | None = None  # why each continuation needs a row of its own; None: trees
    own_attention: bool = False  # the rows' attention is the model's own code
    own_logits: bool = False  # the rows' logits are the model's own: its head is none that we compute in chunks
    length_limit: int | None = None  # tokens of a row beyond which the rotary embedding depends on how many they are

    @property
    def notice(self) -> str | None:
        """A line for the user, if the model is slower than it could be."""
        if self.separate is None:
            return None
        return (
            f"each continuation is computed in a row of its own, which is slower than sharing prompts: {self.separate}"
        )


def layout_of(model: PreTrainedModel) -> Layout:
    """The model's layout; found when it is first asked for."""
    layout: Layout | None = getattr(model, "cpo_ray_layout", None)
    if layout is None:
        layout = find_layout(model)
        set_layout(model, layout)
    return layout


def set_layout(model: PreTrainedModel, layout: Layout) -> None:
    """From now on the model computes packed groups in this way."""
    if layout.length_limit is not None:
        rotate_by_length(model)
    model.cpo_ray_layout = layout


def find_layout(model: PreTrainedModel) -> Layout:
    """The layout by what the model is made of. `check` compares it with the model's own forward pass."""
    own_logits = False
    try:
        lm_head(model)
        decoder(model)
    except UnknownHead:
        own_logits = True
    reason = next(_reasons(model, own_logits=own_logits), None)
    return Layout(reason, own_logits=own_logits, length_limit=length_limit(model))


def decoder(model: PreTrainedModel) -> Any:
    """The part of a causal language model that gives last hidden states. Raises UnknownHead if there is none."""
    if isinstance(model.get_decoder(), nn.Linear):
        raise UnknownHead(f"{type(model).__name__}: its hidden states pass more than one layer on their way to logits")
    for part in (model.get_decoder(), model.base_model, getattr(model, "model", None)):
        if isinstance(part, PreTrainedModel) and part is not model:
            return part
    raise UnknownHead(f"{type(model).__name__}: it has no decoder of its own")


def _reasons(model: PreTrainedModel, *, own_logits: bool) -> Iterator[str]:
    name, config = type(model).__name__, model.config.get_text_config(decoder=True)
    if own_logits:
        yield f"the head of {name} is no linear layer on its last hidden states"
    for module in model.modules():
        if isinstance(module, nn.Conv1d) or MIXERS.search(type(module).__name__):
            yield f"{name} mixes tokens outside attention ({type(module).__name__})"
    others = set(getattr(config, "layer_types", None) or ()) - ATTENTION
    if others:
        yield f"{name} has layers of type {', '.join(sorted(map(str, others)))}"
    if getattr(config, "alibi", False):
        yield f"{name} has ALiBi: its scores depend on places in the row"
    if not model._can_set_attn_implementation() and config.model_type not in PLAIN_MASK:  # noqa: SLF001
        yield f"the attention of {name} is its own, not one of transformers' attention functions"
