"""The auxiliary loss of mixture-of-experts routers: the model's own function, in which every token of a tree counts once.

Each such architecture of transformers has a `load_balancing_loss_func` (Switch Transformer, equations 4 to 6): for E experts,
E * sum over experts of (share of the tokens sent there) * (mean router probability). It is least, top-k, when all experts get
equal shares. It averages over the tokens that its mask keeps, so padding does not count, nor does a prompt that separate rows
repeat.
"""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

KEY = "training.router_auxiliary_loss"
# Names in configurations, of which DBRX keeps its own in `ffn_config`.
EXPERTS = ("num_local_experts", "num_experts", "moe_num_experts", "n_routed_experts")
TOP_K = ("num_experts_per_tok", "moe_top_k")
ARGUMENTS = {"gate_logits", "num_experts", "top_k", "attention_mask"}


@dataclass(frozen=True)
class Routers:
    """How a model's routers are balanced."""

    function: Callable[..., Tensor]
    experts: int
    top_k: int

    def loss(self, output: Any, counted_RN: Tensor) -> Tensor:
        """A scalar. output: of a forward pass with `output_router_logits`. counted_RN: which tokens count, bool."""
        logits = tuple(output.router_logits)  # of each router, (R * N, experts)
        return self.function(logits, self.experts, self.top_k, counted_RN)


def router_fault(config: PreTrainedConfig) -> str | None:
    """Why a model of this configuration has no auxiliary loss that could be trained. None if it has one."""
    if _number(config, EXPERTS) < 2:
        return f"a `{config.model_type}` of this configuration has no routers"
    if _function(config) is None or not _number(config, TOP_K):
        return f"transformers has no auxiliary loss for the routers of a `{config.model_type}`"
    return None


def find_routers(model: PreTrainedModel) -> Routers:
    """The routers of a model. Raises ValueError if they have no auxiliary loss."""
    config, function = model.config, _function(model.config)
    fault = router_fault(config)
    if fault is not None or function is None:
        raise ValueError(f"{KEY}: {fault}")
    return Routers(function, _number(config, EXPERTS), _number(config, TOP_K))


def router_notice(model: PreTrainedModel, coefficient: float) -> str | None:
    """For a model with routers, a line that says whether their auxiliary loss is on."""
    if _number(model.config, EXPERTS) < 2:
        return None
    if coefficient:
        return f"the routers' auxiliary loss is on: {coefficient:g} times it is added to the loss ({KEY})"
    return f"the routers' auxiliary loss is off ({KEY}: 0)"


def _function(config: PreTrainedConfig) -> Callable[..., Tensor] | None:
    """The function in the module of the model's class, if it is of the common form."""
    model = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    function = getattr(sys.modules.get(getattr(model, "__module__", "")), "load_balancing_loss_func", None)
    if function is None or set(inspect.signature(function).parameters) != ARGUMENTS:
        return None
    found: Callable[..., Tensor] = function
    return found


def _number(config: PreTrainedConfig, names: tuple[str, ...]) -> int:
    """The first of these keys that the configuration has; 0 if it has none."""
    text = config.get_text_config(decoder=True)
    for section in (text, getattr(text, "ffn_config", None)):
        for name in names:
            value = getattr(section, name, None)
            if isinstance(value, int):
                return value
    return 0
