"""Log-probs of continuations from packed token trees, without ever materializing [tokens, vocabulary].

The LM head runs over chunks of sources, forward and backward; each chunk's logits are recomputed in the backward pass.
Log-sum-exp, log-probs and their sums are float32 whatever the model's dtype.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cpo_ray.objective.architectures import decoder, layout_of
from cpo_ray.objective.attention import arrange
from cpo_ray.objective.head import Head, OwnLogits, lm_head
from cpo_ray.objective.masks import attending
from cpo_ray.objective.packing import PackedGroups, pack_groups, real_tokens
from cpo_ray.objective.rotary import row_lengths
from cpo_ray.objective.routers import Routers
from cpo_ray.objective.separate_rows import candidate_rows, first_places, path_lengths, path_rows
from cpo_ray.records import Tokens

CHUNK_ELEMENTS = 2**23  # logits of one chunk: 32 MiB in float32


class EdgeLogProbs(torch.autograd.Function):
    """log softmax(logits)[source, target] for E edges whose sources ascend; logits as `head.Head` defines them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_SD: Tensor,
        weight_VD: Tensor,
        edge_source_E: Tensor,
        edge_target_E: Tensor,
        bias_V: Tensor | None = None,
        scale: float = 1.0,
        cap: float | None = None,
    ) -> Tensor:
        """-> (E,) float32, nats."""
        head = Head(weight_VD, bias_V, scale, cap)
        logp_E = torch.empty(len(edge_source_E), dtype=torch.float32, device=hidden_SD.device)
        normalizer_S = torch.empty(len(hidden_SD), dtype=torch.float32, device=hidden_SD.device)
        if hidden_SD.dtype == torch.float64:  # for tests that need more than float32 can show
            logp_E, normalizer_S = logp_E.double(), normalizer_S.double()
        for sources, edges in _chunks(hidden_SD, head.vocabulary, edge_source_E):
            logits_CV = head.logits(hidden_SD[sources])
            source_C, target_C = edge_source_E[edges], edge_target_E[edges]
            wanted_C = logits_CV[source_C - sources.start, target_C]
            largest_C1 = logits_CV.amax(dim=-1, keepdim=True)
            # In place, like everything of a chunk's size: on CPU, allocating a chunk costs more than the arithmetic on it.
            normalizer_S[sources] = logits_CV.sub_(largest_C1).exp_().sum(dim=-1).log_() + largest_C1[:, 0]
            logp_E[edges] = wanted_C - normalizer_S[source_C]
        ctx.save_for_backward(hidden_SD, weight_VD, bias_V, edge_source_E, edge_target_E, normalizer_S)
        ctx.scale, ctx.cap = scale, cap
        return logp_E

    @staticmethod
    def backward(ctx: Any, grad_E: Tensor) -> tuple[Tensor, Tensor | None, None, None, Tensor | None, None, None]:
        """d logp[s, t] / d logits[s, v] = [v = t] - softmax(s)[v]; then by the cap, 1 - (logits / cap)^2, and the scale."""
        hidden_SD, weight_VD, bias_V, edge_source_E, edge_target_E, normalizer_S = ctx.saved_tensors
        head = Head(weight_VD, bias_V, ctx.scale, ctx.cap)
        grad_hidden_SD = torch.empty_like(hidden_SD)
        # The head of a model that is frozen but for an adapter needs no gradient, which is a third of this function's work.
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=normalizer_S.dtype) if ctx.needs_input_grad[1] else None
        grad_bias_V = None if bias_V is None else torch.zeros_like(bias_V, dtype=normalizer_S.dtype)
        outflow_S = torch.zeros_like(normalizer_S).index_add_(0, edge_source_E, grad_E)
        for sources, edges in _chunks(hidden_SD, head.vocabulary, edge_source_E):
            grad_CV = head.logits(hidden_SD[sources])
            slope_CV = None if ctx.cap is None else 1 - (grad_CV / ctx.cap) ** 2
            grad_CV = grad_CV.sub_(normalizer_S[sources, None]).exp_()
            grad_CV *= -outflow_S[sources, None]
            grad_CV.index_put_(
                (edge_source_E[edges] - sources.start, edge_target_E[edges]), grad_E[edges], accumulate=True
            )
            if slope_CV is not None:
                grad_CV *= slope_CV
            if ctx.scale != 1.0:
                grad_CV *= ctx.scale
            if grad_bias_V is not None:
                grad_bias_V += grad_CV.sum(dim=0)
            grad_CV = grad_CV.to(weight_VD.dtype)
            grad_hidden_SD[sources] = grad_CV @ weight_VD
            if grad_weight_VD is None:
                continue
            if grad_CV.dtype == grad_weight_VD.dtype:
                grad_weight_VD.addmm_(grad_CV.T, hidden_SD[sources])
            else:
                grad_weight_VD += grad_CV.T @ hidden_SD[sources]
        bias_grad = None if grad_bias_V is None else grad_bias_V.to(weight_VD.dtype)
        weight_grad = None if grad_weight_VD is None else grad_weight_VD.to(weight_VD.dtype)
        return grad_hidden_SD, weight_grad, None, None, bias_grad, None, None


def edge_logps(hidden_SD: Tensor, head: Head | OwnLogits, edge_source_E: Tensor, edge_target_E: Tensor) -> Tensor:
    """`EdgeLogProbs` of a head: (E,) float32, nats."""
    if isinstance(head, OwnLogits):
        return head.logits(hidden_SD).log_softmax(dim=-1)[edge_source_E, edge_target_E]
    logp_E: Tensor = EdgeLogProbs.apply(  # type: ignore[no-untyped-call]
        hidden_SD, head.weight_VD, edge_source_E, edge_target_E, head.bias_V, head.scale, head.cap
    )
    return logp_E


def candidate_logps(model: PreTrainedModel, packed: PackedGroups) -> Tensor:
    """Sums of log-probs over each continuation's tokens, EOS included: (B, K) float32, nats."""
    logps_BK, _ = balanced_logps(model, packed, None)
    return logps_BK


def balanced_logps(
    model: PreTrainedModel, packed: PackedGroups, routers: Routers | None
) -> tuple[Tensor, Tensor | None]:
    """`candidate_logps`, and with the model's routers their auxiliary loss over these groups, a scalar."""
    packed = lay_out(model, packed)
    hidden_SD, router_loss = _forward(model, packed, routers)
    logp_E = edge_logps(hidden_SD, output_head(model), packed.edge_source_E, packed.edge_target_E)
    sums = torch.zeros(packed.groups * packed.candidates, dtype=logp_E.dtype, device=logp_E.device)
    sums = sums.index_add(0, packed.member_candidate_M, logp_E[packed.member_edge_M])
    return sums.view(packed.groups, -1), router_loss


def lay_out(model: PreTrainedModel, packed: PackedGroups) -> PackedGroups:
    """The groups as they are, or a row and edges for each candidate if the model's rotary embedding depends on their length."""
    return candidate_rows(packed) if _by_length(model, packed) else packed


def output_head(model: PreTrainedModel) -> Head | OwnLogits:
    """What makes logits of `source_hidden`."""
    if layout_of(model).own_logits:
        return OwnLogits(model.get_input_embeddings().weight.shape[0])
    return lm_head(model)


def source_hidden(model: PreTrainedModel, packed: PackedGroups) -> Tensor:
    """Last hidden states at the sources, (S, D); of a model whose head we do not compute, its logits, (S, V)."""
    hidden_SD, _ = _forward(model, packed, None)
    return hidden_SD


def _forward(model: PreTrainedModel, packed: PackedGroups, routers: Routers | None) -> tuple[Tensor, Tensor | None]:
    """`source_hidden`, and the auxiliary loss of these routers."""
    layout = layout_of(model)
    more: dict[str, Any] = {"use_cache": False} | ({"output_router_logits": True} if routers else {})
    if layout.separate is not None:
        counted_RN = first_places(packed) if routers else None
        packed = path_rows(packed)
        with row_lengths(path_lengths(packed) if _by_length(model, packed) else None):
            output = (model if layout.own_logits else decoder(model))(input_ids=packed.input_ids_RN, **more)
        return _at_sources(output, packed, own_logits=layout.own_logits), _balance(output, routers, counted_RN)
    by_length = _by_length(model, packed)
    packed, forest, arguments = arrange(model, packed)
    with attending(forest), row_lengths(path_lengths(packed) if by_length else None):
        output = decoder(model)(input_ids=packed.input_ids_RN, position_ids=packed.position_ids_RN, **arguments, **more)
    counted_RN = real_tokens(packed) if routers else None
    return _at_sources(output, packed), _balance(output, routers, counted_RN)


def _by_length(model: PreTrainedModel, packed: PackedGroups) -> bool:
    limit = layout_of(model).length_limit
    return limit is not None and int(packed.position_ids_RN.max()) + 2 > limit


def _at_sources(output: Any, packed: PackedGroups, *, own_logits: bool = False) -> Tensor:
    out_RND: Tensor = output.logits if own_logits else output.last_hidden_state
    return out_RND.flatten(0, 1)[packed.source_S]


def _balance(output: Any, routers: Routers | None, counted_RN: Tensor | None) -> Tensor | None:
    return None if routers is None or counted_RN is None else routers.loss(output, counted_RN)


def gold_logits(
    model: PreTrainedModel, prompts: Sequence[Tokens], golds: Sequence[Tokens], positions: Sequence[Sequence[int]]
) -> list[Tensor]:
    """Teacher-forced next-token logits: for row b, (len(positions[b]), V) float32 that predict `golds[b][position]`.

    One forward pass over all rows (the meanfield distribution of section 3 of the paper).
    """
    packed = lay_out(model, pack_groups(prompts, [[gold] for gold in golds]).to(model.device))
    hidden_SD, head = source_hidden(model, packed), output_head(model)
    # With one candidate a group, the edges of row b in path order are members b, and edge e leaves source e.
    edges = packed.member_edge_M.split([len(gold) for gold in golds])
    return [
        head.logits(hidden_SD[packed.edge_source_E[edge[list(where)]]])
        for edge, where in zip(edges, positions, strict=True)
    ]


@torch.no_grad()
def sample_edges(model: PreTrainedModel, packed: PackedGroups, uniform_EN: Tensor) -> Tensor:
    """Draw N tokens at each edge's source from the model's distribution there: (E, N).

    uniform_EN: numbers in [0, 1), each of which selects a token by the inverse of the cumulative distribution.
    """
    asked, packed = packed, lay_out(model, packed)
    if packed is not asked:  # each candidate has edges of its own: the members, in their order
        uniform_EN = uniform_EN[asked.member_edge_M]
    hidden_SD, head = source_hidden(model, packed), output_head(model)
    drawn_EN = torch.empty(uniform_EN.shape, dtype=torch.long, device=hidden_SD.device)
    for sources, edges in _chunks(hidden_SD, head.vocabulary, packed.edge_source_E):
        cumulative_CV = head.logits(hidden_SD[sources]).softmax(dim=-1).cumsum(dim=-1)
        rows_CV = cumulative_CV[packed.edge_source_E[edges] - sources.start]
        wanted_CN = uniform_EN[edges].to(rows_CV) * rows_CV[:, -1:]  # the sum is 1 up to rounding
        drawn_EN[edges] = torch.searchsorted(rows_CV, wanted_CN, right=True).clamp(max=rows_CV.shape[1] - 1)
    if packed is not asked:
        drawn_MN, drawn_EN = drawn_EN, drawn_EN.new_empty(len(asked.edge_target_E), drawn_EN.shape[1])
        drawn_EN[asked.member_edge_M] = drawn_MN
    return drawn_EN


def _chunks(hidden_SD: Tensor, vocabulary: int, edge_source_E: Tensor) -> list[tuple[slice, slice]]:
    """Slices of sources with the slices of their edges."""
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    bounds = torch.arange(0, len(hidden_SD) + size, size).clamp(max=len(hidden_SD))
    edge_bounds = torch.searchsorted(edge_source_E, bounds.to(edge_source_E.device)).tolist()
    pairs = zip(bounds.tolist(), bounds.tolist()[1:], edge_bounds, edge_bounds[1:], strict=False)
    return [(slice(a, b), slice(c, d)) for a, b, c, d in pairs if b > a]
