"""Attention over packed token trees: FlexAttention with block masks on CUDA, branch by branch on CPU, otherwise SDPA.

All compute the same: a token sees those ancestors that its layer lets it see (see `packing` and `masks`). A block mask lets the
kernel leave out whole blocks of pairs that see nothing of each other, and those are most of a tree; `branches` leaves out all
of them. SDPA takes a dense mask and computes every pair: for small trees, and on a GPU if FlexAttention cannot do the shape.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from cpo_ray.objective.architectures import layout_of
from cpo_ray.objective.branches import Branch, BranchAttention, ScoreRules, find_branches
from cpo_ray.objective.kernels import kernel_for
from cpo_ray.objective.masks import BLOCK, Forest, branches_of, register_masks, tree_block_mask, tree_mask
from cpo_ray.objective.packing import PackedGroups, drop_padding, widen

TREE = "cpo_ray_tree"  # names under which transformers finds `attend`: with block masks ...
BRANCHES = "cpo_ray_branches"  # ... branch by branch, or with a dense mask where trees are small ...
DENSE = "cpo_ray_dense"  # ... with dense masks
OURS = (TREE, BRANCHES, DENSE)
BRANCH_OVERHEAD = 1_000_000  # what a branch costs to start on, in (pairs of tokens) * (model width); measured on CPU

# What models pass to their attention function besides the products' rules, and what changes no number: windows are in the
# mask, dropout is off, the rest is for kernels of other kinds or for what the model returns.
WITHOUT_EFFECT = {
    *("dropout", "sliding_window", "is_causal", "position_ids", "cache_position", "past_key_values", "use_cache"),
    *("output_attentions", "output_hidden_states", "output_router_logits", "return_dict", "num_items_in_batch"),
    *("deterministic", "layer_idx", "target_dtype", "implementation", "position_embeddings", "logits_to_keep"),
    *("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "input_ids", "inputs_embeds"),
}


class UnknownAttention(ValueError):  # noqa: N818 - it is no fault of the model
    """A model asks for an attention that we do not compute. The message names what it asks for."""


def use_tree_attention(model: PreTrainedModel) -> str | None:
    """Give the model FlexAttention on CUDA, attention by branches elsewhere. Returns None, or the reason for SDPA on CUDA.

    The kernel is tried, because the head sizes and ratios of query to key heads that it supports change with torch and GPU.
    """
    register()
    if layout_of(model).separate is not None:
        use_rows(model)
        return None
    if not model._can_set_attn_implementation():  # noqa: SLF001 - transformers has no public name for it
        return None
    if model.device.type != "cuda":
        model.set_attn_implementation(BRANCHES)
        return None
    model.set_attn_implementation(DENSE)
    config = model.config.get_text_config(decoder=True)
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


def use_rows(model: PreTrainedModel) -> None:
    """Give the model attention for ordinary rows: SDPA that heeds caps and sinks, or its own if it takes no other."""
    if model._can_set_attn_implementation():  # noqa: SLF001 - transformers has no public name for it
        model.set_attn_implementation("eager" if layout_of(model).own_attention else DENSE)


def register() -> None:
    """Make our attention functions and masks known to transformers."""
    for name in OURS:
        AttentionInterface.register(name, attend)
    register_masks(TREE, BRANCHES, DENSE)


def arrange(model: PreTrainedModel, packed: PackedGroups) -> tuple[PackedGroups, Forest | None, dict[str, Any]]:
    """The groups in the rows that suit the model's attention, as its masks see them, and arguments of its decoder."""
    register()
    attention = model.config._attn_implementation  # noqa: SLF001 - transformers has no public name for it
    if attention == "sdpa" and model._can_set_attn_implementation():  # noqa: SLF001
        attention = DENSE  # the same kernel, with each layer's own rule
        model.set_attn_implementation(attention)
    if attention not in OURS:
        mask = tree_mask(packed.subtree_end_RN)
        scores = torch.zeros(mask.shape, dtype=model.dtype, device=mask.device)
        return packed, None, {"attention_mask": scores.masked_fill(~mask, torch.finfo(model.dtype).min)}
    branches = None
    if attention == TREE:
        packed = widen(packed, BLOCK)
    elif attention == BRANCHES:
        one_row = drop_padding(packed)
        found = find_branches(one_row.subtree_end_RN[0].tolist())
        width = model.config.get_text_config(decoder=True).hidden_size
        if branches_pay(found, packed.input_ids_RN.shape, width):
            packed, branches = one_row, found
    forest = Forest(packed.subtree_end_RN, packed.position_ids_RN, branches)
    # Ones say that nothing is padding. Without them transformers would look for rows of several texts in the positions.
    return packed, forest, {"attention_mask": torch.ones_like(packed.input_ids_RN)}


def branches_pay(branches: list[Branch], shape: torch.Size, width: int) -> bool:
    """Whether computing branch by branch costs less than computing every pair of tokens in each row. shape: (R, N)."""
    rows, tokens = shape
    spared = rows * tokens**2 - sum(branch.pairs for branch in branches)
    return spared * width > BRANCH_OVERHEAD * len(branches)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """An attention function as transformers calls it: (R, heads, N, head size) in, (R, N, heads, value size) out.

    The mask decides how: blocks, branches or dense. softcap: scores become softcap * tanh(score / softcap). s_aux: (heads,)
    attention sinks. Raises UnknownAttention for any other argument that may change the numbers.
    """
    unknown = sorted(name for name, given in more.items() if given is not None and name not in WITHOUT_EFFECT)
    if unknown:
        raise UnknownAttention(f"{type(module).__name__} asks for attention with {', '.join(unknown)}")
    if isinstance(attention_mask, BlockMask):
        return tree_attention(module, query, key, value, attention_mask, scaling, softcap=softcap, s_aux=s_aux)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    ours = branches_of(attention_mask)
    if ours is not None:
        branches, window = ours
        rules = ScoreRules(scale, window, softcap)
        out: Tensor = BranchAttention.apply(query[0], key[0], value[0], branches, rules, s_aux)  # type: ignore[no-untyped-call]
        return out[None], None
    if softcap is None and s_aux is None:
        passed = {name: more[name] for name in ("dropout", "is_causal") if name in more}
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **passed)
    return _dense_attention(query, key, value, attention_mask, ScoreRules(scale, cap=softcap), s_aux), None


def tree_attention(
    module: nn.Module,  # noqa: ARG001 - transformers' signature
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: BlockMask,
    scaling: float | None = None,
    *,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """`attend` for a block mask."""
    kernel: Any = flex_attention  # uncompiled it is slow and exact: for tests
    if query.is_cuda:
        kernel = kernel_for(query, key, value, attention_mask, cap=softcap, sinks=s_aux is not None)
    options: dict[str, Any] = {"scale": scaling, "enable_gqa": query.shape[1] != key.shape[1]}
    if softcap is not None:
        options["score_mod"] = _cap_scores(softcap)
    if s_aux is None:
        out: Any = kernel(query, key, value, block_mask=attention_mask, **options)
        return out.transpose(1, 2).contiguous(), None
    out, more = kernel(query, key, value, block_mask=attention_mask, return_aux=AuxRequest(lse=True), **options)
    share = torch.sigmoid(
        more.lse - s_aux.view(1, -1, 1).to(more.lse.dtype)
    )  # of the softmax that the sink leaves over
    return (out * share[..., None].to(out.dtype)).transpose(1, 2).contiguous(), None


def _dense_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rules: ScoreRules, sink_H: Tensor | None
) -> Tensor:
    """Every pair of tokens, for scores that SDPA cannot compute: (R, heads, N, head size) -> (R, N, heads, value size)."""
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scores = (query @ key.transpose(2, 3)).to(torch.promote_types(query.dtype, torch.float32)) * rules.scale
    if rules.cap is not None:
        scores = torch.tanh(scores / rules.cap) * rules.cap
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    scores = scores.masked_fill(~mask, -torch.inf)
    if sink_H is not None:
        sink = sink_H.view(1, -1, 1, 1).to(scores.dtype).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sink], dim=-1)
    weights = scores.softmax(dim=-1)[..., : key.shape[2]].to(value.dtype)
    return (weights @ value).transpose(1, 2).contiguous()


@cache
def _cap_scores(cap: float) -> Any:
    def score_mod(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001
        return cap * torch.tanh(score / cap)

    return score_mod


def _try_kernel(heads: int, keys: int, size: int, dtype: torch.dtype, device: torch.device) -> None:
    """Run forward and backward passes of the kernel in several shapes."""
    for rows, width in ((1, BLOCK), (2, 2 * BLOCK), (3, 4 * BLOCK)):
        mask = tree_block_mask(torch.full((rows, width), width, device=device))
        shapes = ((rows, n, width, size) for n in (heads, keys, keys))
        query, key, value = (torch.zeros(s, dtype=dtype, device=device, requires_grad=True) for s in shapes)
        out, _ = tree_attention(nn.Module(), query, key, value, mask)
        out.sum().backward()
