"""Attention over packed token trees: FlexAttention with block masks on CUDA, branch by branch on CPU, otherwise SDPA.

All compute the same: a token attends exactly the tokens whose subtree contains it (see `packing`). With a block mask the
kernel skips whole blocks of pairs that do not attend, which are most of a tree; `branches` skips all of them. SDPA takes a
dense mask and computes every pair: it is a model's default, and the fallback on a GPU if FlexAttention does not support
the shape.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from cpo_ray.objective.branches import Branch, BranchAttention, find_branches
from cpo_ray.objective.packing import PackedGroups, drop_padding, widen

TREE = "cpo_ray_tree"  # the name under which transformers looks up `tree_attention` ...
BRANCHES = "cpo_ray_branches"  # ... and `branch_attention`
BLOCK = 128  # FlexAttention's block of queries and keys
BRANCH_OVERHEAD = 1_000_000  # fixed cost of a branch, in (pairs of tokens) * (model width); measured on CPU


def use_tree_attention(model: PreTrainedModel) -> str | None:
    """Give the model FlexAttention on CUDA, attention by branches elsewhere. Returns None, or the reason for SDPA on CUDA.

    The kernel is tried, because the head sizes and ratios of query to key heads that it supports change with torch and GPU.
    """
    AttentionInterface.register(TREE, tree_attention)
    AttentionInterface.register(BRANCHES, branch_attention)
    if model.device.type != "cuda":
        model.set_attn_implementation(BRANCHES)
        return None
    model.set_attn_implementation("sdpa")
    config = model.config
    heads = config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    try:
        _try_kernel(heads, keys, size, model.dtype, model.device)
    except (RuntimeError, ValueError) as error:  # raised by torch and its compiler for an unsupported shape
        reason = str(error).strip().splitlines()[0][:200]
        return f"FlexAttention cannot do {heads} heads of size {size} on {keys} key heads here: {reason}"
    model.set_attn_implementation(TREE)
    return None


def arrange(model: PreTrainedModel, packed: PackedGroups) -> tuple[PackedGroups, dict[str, Any]]:
    """The groups in rows for the model's attention, and the mask in its format, as arguments for the decoder."""
    attention = model.config._attn_implementation  # noqa: SLF001 - transformers has no public name for it
    if attention == TREE:
        packed = widen(packed, BLOCK)
        return packed, {"attention_mask": tree_block_mask(packed.subtree_end_RN)}
    if attention == BRANCHES:
        one_row = drop_padding(packed)
        branches = find_branches(one_row.subtree_end_RN[0].tolist())
        if branches_pay(branches, packed.input_ids_RN.shape, model.config.hidden_size):
            # transformers passes a mask of four dimensions on unchanged, and unknown arguments down to the attention.
            return one_row, {"attention_mask": one_row.subtree_end_RN[:, None, None], "branches": branches}
    return packed, {"attention_mask": tree_mask(packed.subtree_end_RN)}


def branches_pay(branches: list[Branch], shape: torch.Size, width: int) -> bool:
    """Whether computing branch by branch costs less than computing every pair of tokens in each row. shape: (R, N)."""
    rows, tokens = shape
    spared = rows * tokens**2 - sum(branch.pairs for branch in branches)
    return spared * width > BRANCH_OVERHEAD * len(branches)


def tree_mask(subtree_end_RN: Tensor) -> Tensor:
    """Which query may attend which key, (R, 1, N, N) bool, True = visible."""
    index = torch.arange(subtree_end_RN.shape[1], device=subtree_end_RN.device)
    query, key = index[:, None], index[None, :]
    return ((key <= query) & (query < subtree_end_RN[:, None, None, :])).contiguous()


def tree_block_mask(subtree_end_RN: Tensor) -> BlockMask:
    """The same as blocks: (R, 1, N, N) in steps of 128."""
    rows, width = subtree_end_RN.shape

    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001 - FlexAttention's signature
        return (key <= query) & (query < subtree_end_RN[row, key])

    mask = create_block_mask(visible, rows, None, width, width, device=subtree_end_RN.device, BLOCK_SIZE=BLOCK)
    mask.ndim = len(mask.shape)  # type: ignore[attr-defined]  # transformers' GPT-2 asks every mask for it
    return mask


def tree_attention(
    module: nn.Module,  # noqa: ARG001 - transformers' signature
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: BlockMask,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """An attention function as transformers calls it: (R, heads, N, head size) in, (R, N, heads, head size) out."""
    attend = _compiled() if query.is_cuda else flex_attention  # uncompiled it is slow but exact, for tests
    grouped = query.shape[1] != key.shape[1]
    out: Any = attend(query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=grouped)
    return out.transpose(1, 2).contiguous(), None


def branch_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    branches: list[Branch] | None = None,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """The same on one row of whole trees: (1, heads, N, head size) in, (1, N, heads, head size) out. SDPA without branches."""
    if branches is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **more)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out: Tensor = BranchAttention.apply(query[0], key[0], value[0], branches, scale)  # type: ignore[no-untyped-call]
    return out[None], None


@cache
def _compiled() -> Any:
    return compile_kernel("inductor")


def compile_kernel(backend: Any) -> Any:
    """FlexAttention, compiled for the first shape, then once more for any number and length of rows.

    After too many recompilations torch would silently run it uncompiled, with every score in memory: here that is an error.
    """
    compiled: Any = torch.compile(flex_attention, backend=backend)

    def attend(*tensors: Tensor, **options: object) -> Any:
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):  # noqa: SLF001 - torch's documented knob
            return compiled(*tensors, **options)

    return attend


def _try_kernel(heads: int, keys: int, size: int, dtype: torch.dtype, device: torch.device) -> None:
    """Run forward and backward passes of the kernel in several shapes."""
    for rows, width in ((1, BLOCK), (2, 2 * BLOCK), (3, 4 * BLOCK)):
        mask = tree_block_mask(torch.full((rows, width), width, device=device))
        shapes = ((rows, n, width, size) for n in (heads, keys, keys))
        query, key, value = (torch.zeros(s, dtype=dtype, device=device, requires_grad=True) for s in shapes)
        out, _ = tree_attention(nn.Module(), query, key, value, mask)
        out.sum().backward()
