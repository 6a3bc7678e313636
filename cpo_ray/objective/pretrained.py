"""Load a causal language model whose log-probs are compared: the trainer and the scorer get the same function.

Dropout is off in both. A model has it in three forms: modules (`nn.Dropout`), numbers of a module that its forward pass uses
(`F.dropout(x, p=self.dropout)`, as in OPT, BioGPT and StarCoder2), and numbers of the configuration. All are set to 0,
and two forward passes in training mode must then agree.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from cpo_ray.errors import TrainingError
from cpo_ray.objective.adapters import load_adapter, saved_base
from cpo_ray.objective.loading import load_causal_lm
from cpo_ray.records import ADAPTER

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
RATE = re.compile("jitter|dropout|drop_rate|drop_prob|drop_path|prob_drop|pdrop|layerdrop")
ATTENTION = re.compile("att")  # `attention_dropout`, `attn_pdrop`: dropout of attention weights
PROBE_TOKENS = 8

Rates = dict[tuple[str, ...], float]  # keys of a configuration and its sub-configurations -> the value


def load_model(source: str | Path, precision: str, *, dropout: str = "none") -> PreTrainedModel:
    """Load the model in a Hugging Face directory or hub id, in evaluation mode: safetensors only, no remote code.

    precision: fp32 or bf16. dropout: "none", or "model" for the model's own rates in training mode. Dropout of attention
    weights is off in both, because attention over packed groups has none.

    Raises TrainingError if the model cannot be loaded, or if, without dropout, two forward passes in training mode differ.
    """

    def adjust(config: PreTrainedConfig) -> None:
        rates = dropout_rates(config)
        _set_rates(config, {key: 0.0 for key in rates if dropout == "none" or ATTENTION.search(".".join(key))})

    model = load_causal_lm(source, DTYPES[precision], adjust)
    if dropout == "none":
        _switch_off(model)
        check_repeatable(model, str(source), train_mode)
    return model


def load_adapted(source: str | Path, precision: str, *, dropout: str = "none") -> PreTrainedModel:
    """Load a model as it was trained: if `source` holds an adapter, its base with that adapter, else as `load_model` does.

    The merged weights beside an adapter were rounded to their precision, so in bf16 they are another function.
    """
    base = saved_base(source)
    model = load_model(base or source, precision, dropout=dropout)
    if base is not None:
        load_adapter(model, Path(source) / ADAPTER)
        model.eval()
    return model


@contextlib.contextmanager
def original_dropout(config: PreTrainedConfig, source: str | Path) -> Iterator[None]:
    """Within it, `config` has the dropout rates of the model at `source`, so that a saved configuration is unchanged."""
    own = dropout_rates(config)
    _set_rates(config, dropout_rates(AutoConfig.from_pretrained(source, trust_remote_code=False)))
    try:
        yield
    finally:
        _set_rates(config, own)


def dropout_rates(config: Any, parents: tuple[str, ...] = ()) -> Rates:
    """The dropout rates of a configuration and its sub-configurations."""
    found: Rates = {}
    for key, value in _items(config):
        if _is_rate(key, value):
            found[*parents, key] = value
        elif isinstance(value, PreTrainedConfig | dict):
            found |= dropout_rates(value, (*parents, str(key)))
    return found


def train_mode(model: PreTrainedModel) -> None:
    """Training mode for what checkpoints activations, which it does in no other, and evaluation mode for all else.

    Some routers and layers draw at random in training mode, and the policy would not be the reference at the first step.
    """
    for module in model.modules():
        module.training = bool(getattr(module, "gradient_checkpointing", False))


def check_repeatable(
    model: PreTrainedModel, name: str, start: Callable[[PreTrainedModel], object] = PreTrainedModel.train
) -> None:
    """Raise TrainingError, naming the module, if two forward passes in training mode differ. Leaves evaluation mode.

    start: puts the model into the mode in which it will be trained.

    A difference of rounding, which a library's kernels may show, is none: dropout changes far more.
    """
    start(model)
    first, second = _trace(model), _trace(model)
    model.eval()
    if not _differ(first[-1].outputs, second[-1].outputs):
        return
    pairs = zip(first, second, strict=False)
    random = (a for a, b in pairs if not _differ(a.inputs, b.inputs) and _differ(a.outputs, b.outputs))
    module = next(random, first[-1])
    raise TrainingError(
        f"the model {name} is another function each time that it runs in training mode: its module {module.name} "
        f"({module.kind}) draws random numbers, although every dropout rate is 0. So its log-probs cannot be compared with a "
        "reference's. Use another model, or train with that noise: training.dropout: model."
    )


class _Call:
    """One call of a module: copies of the tensors that went in and came out."""

    def __init__(self, name: str, module: nn.Module, inputs: Any, outputs: Any) -> None:
        self.name, self.kind = name or "(the model)", type(module).__name__
        self.inputs, self.outputs = _tensors(inputs), _tensors(outputs)


@torch.no_grad()
def _trace(model: PreTrainedModel) -> list[_Call]:
    """The calls of one forward pass over a few tokens, in the order in which they return; the model's own is the last."""
    calls: list[_Call] = []

    def record(name: str) -> Any:
        return lambda module, args, kwargs, out: calls.append(_Call(name, module, (args, kwargs), out))

    hooks = [module.register_forward_hook(record(name), with_kwargs=True) for name, module in model.named_modules()]
    vocabulary = model.get_input_embeddings().weight.shape[0]
    tokens = torch.arange(1, 1 + PROBE_TOKENS, device=model.device) % vocabulary
    try:
        model(input_ids=tokens[None], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _tensors(values: Any) -> list[Tensor]:
    return [leaf.clone() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _differ(one: list[Tensor], two: list[Tensor]) -> bool:
    """Whether two lists of tensors differ by more than a few roundings of their dtype."""
    return len(one) != len(two) or any(a.shape != b.shape or _distance(a, b) > 0 for a, b in zip(one, two, strict=True))


def _distance(one: Tensor, two: Tensor) -> float:
    """|one - two| / |one|; 0 if that is rounding."""
    if torch.equal(one, two):
        return 0.0
    if not one.is_floating_point():
        return 1.0
    a, b = one.double().nan_to_num(), two.double().nan_to_num()
    distance = float((a - b).norm() / a.norm().clamp_min(torch.finfo(one.dtype).tiny))
    return distance if distance > 4 * torch.finfo(one.dtype).eps else 0.0


def _switch_off(model: PreTrainedModel) -> None:
    """Set the rates that modules hold, whatever they were built from."""
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if _is_rate(name, value):
                setattr(module, name, 0.0)


def _set_rates(config: Any, rates: Mapping[tuple[str, ...], float]) -> None:
    for (*parents, key), value in rates.items():
        section = config
        for parent in parents:
            section = section[parent] if isinstance(section, dict) else getattr(section, parent)
        if isinstance(section, dict):
            section[key] = value
        else:
            setattr(section, key, value)


def _items(config: Any) -> list[tuple[str, Any]]:
    return list((config if isinstance(config, dict) else vars(config)).items())


def _is_rate(name: Any, value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and isinstance(name, str) and RATE.search(name) is not None
