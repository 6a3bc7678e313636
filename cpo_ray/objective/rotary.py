"""Rotary embeddings that depend on how long the row is: dynamic NTK and longrope, beyond the length that they were made for.

A prompt that two continuations share would be rotated by both their lengths, so such rows are separate. Rows of several
lengths are still one forward pass: each token is rotated as in a row of its own length.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_length: ContextVar[Tensor | None] = ContextVar("length", default=None)


@contextlib.contextmanager
def row_lengths(length_RN: Tensor | None) -> Iterator[None]:
    """Within the block, each token is rotated as in a row of so many tokens. None: as the model itself would."""
    token = _length.set(length_RN)
    try:
        yield
    finally:
        _length.reset(token)


def length_limit(model: PreTrainedModel) -> int | None:
    """The most tokens of a row whose rotation does not depend on their number, None if none's does."""
    return min((limit for module in model.modules() for _, limit in _dependent(module)), default=None)


def rotate_by_length(model: PreTrainedModel) -> None:
    """Have the model's rotary embeddings heed `row_lengths`."""
    for module in model.modules():
        if any(_dependent(module)) and not isinstance(module.forward, partial):
            module.forward = partial(_rotate, module, module.forward)


def _dependent(module: nn.Module) -> Iterator[tuple[str, int]]:
    """(prefix of its buffers, limit) of each rotation in the module that depends on the length."""
    kinds = getattr(module, "rope_type", None)
    for layer_type, kind in kinds.items() if isinstance(kinds, dict) else [(None, kinds)]:
        prefix = "" if layer_type is None else f"{layer_type}_"
        if kind == "longrope":
            rope: Any = module.config.rope_parameters  # type: ignore[union-attr]
            yield prefix, int((rope if layer_type is None else rope[layer_type])["original_max_position_embeddings"])
        elif isinstance(kind, str) and "dynamic" in kind:
            yield prefix, int(module.original_max_seq_len)  # type: ignore[arg-type]


def _rotate(
    module: nn.Module, forward: Callable[..., Any], x: Tensor, position_ids: Tensor, *more: Any, **named: Any
) -> Any:
    """The rotation of every token by the length of its row: (cosines, sines), or whatever the module gives, (R, N, ...)."""
    length_RN = _length.get()
    if length_RN is None:
        return forward(x, position_ids, *more, **named)
    limit = min(limit for _, limit in _dependent(module))
    position_RN, length_RN = position_ids.expand(length_RN.shape), length_RN.clamp(min=limit)
    whole: list[Tensor] = []
    is_tuple = True
    for length in length_RN.unique().tolist():
        _forget(module)
        here = length_RN == length
        last = position_RN.new_tensor([length - 1])  # the model takes the length from the largest position
        given = forward(x, torch.cat([position_RN[here], last])[None], *more, **named)
        is_tuple = isinstance(given, tuple)
        parts = given if is_tuple else (given,)
        whole = whole or [part.new_empty(*length_RN.shape, *part.shape[2:]) for part in parts]
        for all_of_it, part in zip(whole, parts, strict=True):
            all_of_it[here] = part[0, :-1]
    _forget(module)
    return tuple(whole) if is_tuple else whole[0]


def _forget(module: nn.Module) -> None:
    """A dynamic rotation keeps the frequencies of the longest row so far: set those of short rows."""
    for prefix, limit in _dependent(module):
        original = getattr(module, f"{prefix}original_inv_freq")
        there = getattr(module, f"{prefix}inv_freq")
        module.register_buffer(f"{prefix}inv_freq", original.to(there.device), persistent=False)
        if hasattr(module, f"{prefix}max_seq_len_cached"):
            setattr(module, f"{prefix}max_seq_len_cached", limit)
