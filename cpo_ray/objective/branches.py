"""Exact attention over a token tree without a GPU kernel: branch by branch, with dense products and linear memory.

A tree in depth-first order consists of branches: runs of tokens, each of which is the child of the one before. All tokens of
a branch attend its ancestors, and each attends the branch up to itself. So a branch of s tokens under n ancestors costs
s * (n + s) pairs, while a dense mask over the row computes every pair and discards most of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

BLOCK = 256  # longer branches are cut, so that less of a branch's causal square is computed and masked


@dataclass(frozen=True)
class Branch:
    """Tokens [start, end), each the child of the one before; `ancestors` are the other spans [start, end) they attend."""

    start: int
    end: int
    ancestors: tuple[tuple[int, int], ...]

    @property
    def pairs(self) -> int:
        """Pairs of tokens that are computed for it."""
        length = self.end - self.start
        return length * (length + sum(b - a for a, b in self.ancestors))

    def gather(self, tensor_GND: Tensor) -> Tensor:
        """What the branch sees, its own tokens last: (G, n + s, D)."""
        spans = [*self.ancestors, (self.start, self.end)]
        return (
            torch.cat([tensor_GND[:, a:b] for a, b in spans], dim=1)
            if len(spans) > 1
            else tensor_GND[:, slice(*spans[0])]
        )

    def scatter_add(self, tensor_GND: Tensor, seen: Tensor) -> None:
        """The inverse of `gather`: add each part at its original position."""
        offset = 0
        for a, b in [*self.ancestors, (self.start, self.end)]:
            tensor_GND[:, a:b] += seen[:, offset : offset + b - a]
            offset += b - a


def within_window(branch: Branch, window: int) -> Branch:
    """The branch without the ancestors that are `window` or more tokens before its first token: no token of it sees them."""
    left, kept = window - 1, []
    for a, b in reversed(branch.ancestors):
        if left <= 0:
            break
        kept.append((max(a, b - left), b))
        left -= b - a
    return replace(branch, ancestors=tuple(reversed(kept)))


def find_branches(subtree_end: Sequence[int], block: int = BLOCK) -> list[Branch]:
    """The branches of consecutive trees, in order; every token is in exactly one."""
    branches: list[Branch] = []
    path: list[tuple[int, int]] = []  # spans from the root to the token before
    start = 0
    for index in range(1, len(subtree_end) + 1):
        ends = index == len(subtree_end) or subtree_end[index - 1] <= index  # the next token is no child of this one
        if not ends and index - start < block:
            continue
        branches.append(Branch(start, index, tuple(path)))
        path.append((start, index))
        while path and index < len(subtree_end):  # leave the subtrees that the next token is not in
            a, b = path.pop()
            while b > a and subtree_end[b - 1] <= index:
                b -= 1
            if b > a:
                path.append((a, b))
                break
        start = index
    return branches


@dataclass(frozen=True)
class ScoreRules:
    """What a model does to the products of queries and keys before its softmax."""

    scale: float
    window: int | None = None  # a token sees the tokens fewer than so many positions before it
    cap: float | None = None  # scores become cap * tanh(score / cap)


class BranchAttention(torch.autograd.Function):
    """softmax(Q K^T * scale) V where a query sees its ancestors and itself. H query heads share G key heads, H = G * J.

    sink_H: a logit per head that takes part in the softmax and has no value (attention sinks, gpt-oss).
    """

    @staticmethod
    def forward(
        ctx: Any,
        query_HND: Tensor,
        key_GND: Tensor,
        value_GND: Tensor,
        branches: list[Branch],
        rules: ScoreRules | float,
        sink_H: Tensor | None = None,
    ) -> Tensor:
        """-> (N, H, the values' size)."""
        rules = rules if isinstance(rules, ScoreRules) else ScoreRules(rules)
        heads, tokens, _ = query_HND.shape
        out_NHD = query_HND.new_empty(tokens, heads, value_GND.shape[-1])
        normalizer_HN = torch.empty(heads, tokens, dtype=_wide(query_HND), device=query_HND.device)
        for branch in branches:
            s = slice(branch.start, branch.end)
            scores_HSN = _scores(query_HND[:, s], branch.gather(key_GND), rules)
            normalizer_HN[:, s] = torch.logsumexp(scores_HSN, dim=-1)
            if sink_H is not None:
                normalizer_HN[:, s] = torch.logaddexp(normalizer_HN[:, s], sink_H[:, None].to(normalizer_HN.dtype))
            weights_HSN = scores_HSN.sub_(normalizer_HN[:, s, None]).exp_().to(value_GND.dtype)
            seen_GND = branch.gather(value_GND)
            out_NHD[s] = (_by_group(weights_HSN, seen_GND) @ seen_GND).view(heads, len(out_NHD[s]), -1).transpose(0, 1)
        ctx.save_for_backward(query_HND, key_GND, value_GND, normalizer_HN, sink_H)
        ctx.branches, ctx.rules = branches, rules
        return out_NHD

    @staticmethod
    def backward(ctx: Any, grad_NHD: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, Tensor | None]:
        """The weights are computed again from the saved normalizers, as FlashAttention does (Dao et al. 2022, B.4)."""
        query_HND, key_GND, value_GND, normalizer_HN, sink_H = ctx.saved_tensors
        rules = ctx.rules
        grad_query, grad_key, grad_value = (torch.zeros_like(t) for t in (query_HND, key_GND, value_GND))
        grad_sink_H = None if sink_H is None else torch.zeros_like(sink_H, dtype=normalizer_HN.dtype)
        for branch in ctx.branches:
            s = slice(branch.start, branch.end)
            keys, values = branch.gather(key_GND), branch.gather(value_GND)
            query = _by_group(query_HND[:, s], keys)
            grad = _by_group(grad_NHD[s].transpose(0, 1), keys)
            scores_HSN = _scores(query_HND[:, s], keys, rules)
            slope = None
            if rules.cap is not None:  # masked scores are minus infinity; their weight is 0 whatever the slope
                slope = (1 - (scores_HSN.clamp(min=-rules.cap) / rules.cap) ** 2).view(*query.shape[:2], -1)
            weights_HSN = scores_HSN.sub_(normalizer_HN[:, s, None]).exp_()
            weights = weights_HSN.view(*query.shape[:2], -1)
            branch.scatter_add(grad_value, weights.to(grad.dtype).transpose(1, 2) @ grad)
            towards = (grad @ values.transpose(1, 2)).to(weights.dtype)
            inner = (towards * weights).sum(dim=-1, keepdim=True)
            grad_scores = towards.sub_(inner).mul_(weights)
            if slope is not None:
                grad_scores *= slope
            grad_scores = grad_scores.mul_(rules.scale).to(query.dtype)
            grad_query[:, s] = (grad_scores @ keys).view(query_HND[:, s].shape)
            branch.scatter_add(grad_key, grad_scores.transpose(1, 2) @ query)
            if grad_sink_H is not None:
                share_HS = (sink_H[:, None].to(normalizer_HN.dtype) - normalizer_HN[:, s]).exp()
                grad_sink_H -= (share_HS * inner.view(share_HS.shape)).sum(dim=1)
        sink_grad = None if grad_sink_H is None else grad_sink_H.to(sink_H.dtype)
        return grad_query, grad_key, grad_value, None, None, sink_grad


def _scores(query_HSD: Tensor, keys_GND: Tensor, rules: ScoreRules) -> Tensor:
    """(H, S, N) in float32 or wider, minus infinity for what a query does not see: its descendants, and the too far."""
    heads, length, _ = query_HSD.shape
    scores = _by_group(query_HSD, keys_GND) @ keys_GND.transpose(1, 2)
    scores_HSN = scores.to(_wide(query_HSD)).view(heads, length, -1).mul_(rules.scale)
    if rules.cap is not None:
        scores_HSN = scores_HSN.div_(rules.cap).tanh_().mul_(rules.cap)
    if length > 1:
        later = torch.ones(length, length, dtype=torch.bool, device=scores.device).triu_(1)
        scores_HSN[:, :, -length:].masked_fill_(later, -torch.inf)
    total = scores_HSN.shape[-1]
    if (
        rules.window is not None and total > rules.window
    ):  # keys are in order of position, the last one is the last query
        far = torch.ones(length, total, dtype=torch.bool, device=scores.device).tril_(total - length - rules.window)
        scores_HSN.masked_fill_(far, -torch.inf)
    return scores_HSN


def _by_group(tensor_HSD: Tensor, keys_GND: Tensor) -> Tensor:
    """(G, J * S, D): the query heads of each key head are concatenated, so that one product computes them all."""
    return tensor_HSD.reshape(keys_GND.shape[0], -1, tensor_HSD.shape[-1])


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
