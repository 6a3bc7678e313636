"""The LM head, from hidden states to logits: a matrix, and what some models put around it.

z = scale * (hidden @ weight.T + bias)        Granite, Cohere, Falcon-H1: a scale; Phi, GPT-J, CodeGen: a bias
logits = cap * tanh(z / cap)                  Gemma, RecurrentGemma, nanochat: a soft cap
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # keys of a configuration
FACTORS = ("logit_scale", "lm_head_multiplier")
DIVISORS = ("logits_scaling",)


class UnknownHead(ValueError):  # noqa: N818 - it is no fault of the model
    """The LM head is not of the form above."""


@dataclass(frozen=True)
class Head:
    """An LM head. V tokens, D the width of the hidden states."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None

    def logits(self, hidden_CD: Tensor) -> Tensor:
        """(C, V), at least float32."""
        logits_CV = matrix_logits(hidden_CD, self.weight_VD)
        if self.bias_V is not None:
            logits_CV += self.bias_V
        if self.scale != 1.0:
            logits_CV *= self.scale
        return logits_CV if self.cap is None else torch.tanh(logits_CV / self.cap) * self.cap

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.weight_VD.shape[0]

    @property
    def tensors(self) -> list[Tensor]:
        """What is trained."""
        return [self.weight_VD] if self.bias_V is None else [self.weight_VD, self.bias_V]


@dataclass(frozen=True)
class OwnLogits:
    """In place of a head, for a model whose own logits stand where other models' hidden states do."""

    vocabulary: int

    def logits(self, logits_CV: Tensor) -> Tensor:
        """(C, V), at least float32."""
        return logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))


def lm_head(model: PreTrainedModel) -> Head:
    """The model's head. Raises UnknownHead for one that is not a linear layer."""
    layer: Any = model.get_output_embeddings()
    if not isinstance(layer, nn.Linear):
        raise UnknownHead(f"{type(model).__name__}: the LM head is not a linear layer ({layer})")
    config = model.config.get_text_config(decoder=True)
    scale = 1.0
    for name in FACTORS:
        scale *= _number(config, name) or 1.0
    for name in DIVISORS:
        scale /= _number(config, name) or 1.0
    caps = [cap for cap in (_number(config, name) for name in CAPS) if cap]
    return Head(layer.weight, layer.bias, scale, caps[0] if caps else None)


def lm_head_weight(model: PreTrainedModel) -> Tensor:
    """The LM head's weight, (V, D). Raises UnknownHead for a head that is not a linear layer."""
    return lm_head(model).weight_VD


def matrix_logits(hidden_CD: Tensor, weight_VD: Tensor) -> Tensor:
    """At least float32, however narrow the model's dtype: rounded to bf16, a logit near 100 is off by up to a quarter."""
    if hidden_CD.is_cuda and hidden_CD.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(hidden_CD, weight_VD.T, out_dtype=torch.float32)
    wide = torch.promote_types(hidden_CD.dtype, torch.float32)
    return hidden_CD.to(wide) @ weight_VD.to(wide).T


def _number(config: Any, name: str) -> float | None:
    value = getattr(config, name, None)
    return float(value) if isinstance(value, int | float) else None
