"""Who sees whom in a packed row, for every layer of any model that `transformers` makes masks for.

A model asks `transformers` for its masks: causal, with a sliding window, in chunks. We answer under names of our own. A token
of a tree has the position that it would have in a row of its own, so a layer's rule for a separate row, applied to positions,
is its rule for the tree:

    query i sees key j   iff   j <= i < subtree_end[j]  and  the layer's rule lets position[i] see position[j]
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionMaskInterface
from transformers.masking_utils import causal_mask_function, flex_attention_mask, sdpa_mask

from cpo_ray.objective.branches import Branch, find_branches, within_window

BLOCK = 128  # FlexAttention's block of queries and keys

Reach = int | Tensor | None
"""Which ancestors a token sees: all (None), those fewer than so many positions before it, or as a (P, P) bool table says."""


@dataclass(frozen=True)
class Forest:
    """The packed rows of a forward pass, and their branches if attention goes branch by branch."""

    subtree_end_RN: Tensor
    position_ids_RN: Tensor
    branches: list[Branch] | None = None


_forest: ContextVar[Forest | None] = ContextVar("forest", default=None)


@contextlib.contextmanager
def attending(forest: Forest | None) -> Iterator[None]:
    """Within the block, models with our attention see these rows; with None, or outside, ordinary rows."""
    token = _forest.set(forest)
    try:
        yield
    finally:
        _forest.reset(token)


def register_masks(tree: str, branches: str, dense: str) -> None:
    """Have `transformers` ask us for the masks of attention functions of these names."""
    AttentionMaskInterface.register(tree, partial(_answer, ordinary=flex_attention_mask))
    AttentionMaskInterface.register(branches, partial(_answer, ordinary=sdpa_mask))
    AttentionMaskInterface.register(dense, partial(_answer, ordinary=sdpa_mask))


def tree_mask(subtree_end_RN: Tensor, position_RN: Tensor | None = None, reach: Reach = None) -> Tensor:
    """Who may attend whom, (R, 1, N, N) bool, True = visible. Positions are needed for a `reach`."""
    index = torch.arange(subtree_end_RN.shape[1], device=subtree_end_RN.device)
    query, key = index[:, None], index[None, :]
    mask = (key <= query) & (query < subtree_end_RN[:, None, None, :])
    if reach is not None and position_RN is not None:
        query_position, key_position = position_RN[:, None, :, None], position_RN[:, None, None, :]
        near = query_position - key_position < reach if isinstance(reach, int) else reach[query_position, key_position]
        mask = mask & near
    return mask.contiguous()


def tree_block_mask(subtree_end_RN: Tensor, position_RN: Tensor | None = None, reach: Reach = None) -> BlockMask:
    """The same as blocks: (R, 1, N, N) in steps of 128."""
    rows, width = subtree_end_RN.shape

    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001 - FlexAttention's signature
        return (key <= query) & (query < subtree_end_RN[row, key])

    rule: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = visible
    if reach is not None and position_RN is not None:
        rule = _far_rule(visible, position_RN, reach)
    mask = create_block_mask(rule, rows, None, width, width, device=subtree_end_RN.device, BLOCK_SIZE=BLOCK)
    mask.ndim = len(mask.shape)  # type: ignore[attr-defined]  # some models ask every mask for it
    return mask


def branch_mask(forest: Forest, window: int | None) -> Tensor:
    """What `branches_of` reads: (1, 1, 2, N) integers, each token's subtree end and the window (0 for none)."""
    ends_N = forest.subtree_end_RN[0]
    mask = torch.stack([ends_N, torch.full_like(ends_N, window or 0)])[None, None]
    mask.branches = _visible_branches(forest.branches or [], window)  # type: ignore[attr-defined]
    return mask


def branches_of(mask: Any) -> tuple[list[Branch], int | None] | None:
    """The branches and the window of a `branch_mask`, None for any other mask."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.long:
        return None
    window = int(mask[0, 0, 1, 0]) or None
    branches = getattr(mask, "branches", None)
    if branches is None:  # a copy of ours
        branches = _visible_branches(find_branches(mask[0, 0, 0].tolist()), window)
    return branches, window


def _visible_branches(branches: list[Branch], window: int | None) -> list[Branch]:
    return branches if window is None else [within_window(branch, window) for branch in branches]


def _answer(
    *, mask_function: Callable[..., Any], ordinary: Callable[..., Any], config: Any, device: torch.device, **asked: Any
) -> Any:
    """The mask of a layer type whose rule for ordinary rows is `mask_function` of (row, head, query, key) indices."""
    forest = _forest.get()
    if forest is None:
        return ordinary(mask_function=mask_function, config=config, device=device, **asked)
    ends_RN, position_RN = forest.subtree_end_RN, forest.position_ids_RN
    reach = _find_reach(mask_function, position_RN, asked.get("local_size"), use_vmap=bool(asked.get("use_vmap")))
    if ordinary is flex_attention_mask:
        return tree_block_mask(ends_RN, position_RN, reach)
    if forest.branches is not None and not isinstance(reach, Tensor):
        return branch_mask(forest, reach)
    return tree_mask(ends_RN, position_RN, reach)


def _find_reach(mask_function: Callable[..., Any], position_RN: Tensor, size: int | None, *, use_vmap: bool) -> Reach:
    """What a rule says about every pair of positions that occur."""
    if mask_function is causal_mask_function:
        return None
    length, device = int(position_RN.max()) + 1, position_RN.device
    table = sdpa_mask(
        1, length, length, mask_function=mask_function, allow_is_causal_skip=False, use_vmap=use_vmap, device=device
    )[0, 0]
    index = torch.arange(length, device=device)
    distance = index[:, None] - index[None, :]
    if torch.equal(table, distance >= 0):
        return None
    if size is not None and torch.equal(table, (distance >= 0) & (distance < size)):
        return size
    return table


def _far_rule(visible: Callable[..., Tensor], position_RN: Tensor, reach: Reach) -> Callable[..., Tensor]:
    """`visible`, and near enough. A window is a tensor, so that one compiled kernel serves windows of every length."""
    if isinstance(reach, Tensor):
        table = reach

        def listed(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return visible(row, head, query, key) & table[position_RN[row, query], position_RN[row, key]]

        return listed
    window = torch.tensor(reach, device=position_RN.device)

    def near(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return visible(row, head, query, key) & (position_RN[row, query] - position_RN[row, key] < window)

    return near
