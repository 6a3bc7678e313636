"""A group as a token tree: every shared prefix is computed once.

The prompt is the trunk and each candidate a branch that leaves where it first differs. A truncation negative is then
the gold plus one edge to EOS, a duplicate is the same leaf, and identical prompts would share a trunk: nothing needs a
case of its own. In depth-first order a token may attend exactly the tokens whose subtree it lies in, so the whole
attention pattern is one integer per token:

    query i sees key j   iff   j <= i < subtree_end[j]

A continuation's log-prob is a sum over the edges (source, target) of its path. A source is a token whose hidden state
meets the LM head; a target never needs to be an input itself, so final tokens cost nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

Tokens = list[int]


@dataclass(frozen=True)
class TokenTree:
    """One group in depth-first order, as plain lists. N nodes, E edges, K candidates."""

    tokens: list[int]  # (N,)
    positions: list[int]  # (N,) depth, the position id
    subtree_end: list[int]  # (N,) exclusive
    sources: list[int]  # (E,) node index
    targets: list[int]  # (E,) token
    paths: list[list[int]]  # (K, T_k) edge indices of each candidate


@dataclass(frozen=True)
class PackedGroups:
    """B groups of K candidates in R rows of N tokens. Sources are sorted, so edges of a chunk of sources are contiguous."""

    input_ids_RN: Tensor
    position_ids_RN: Tensor
    subtree_end_RN: Tensor
    source_S: Tensor  # flat index into R * N
    edge_source_E: Tensor  # index into S, ascending
    edge_target_E: Tensor
    member_edge_M: Tensor  # which edge ...
    member_candidate_M: Tensor  # ... belongs to which candidate, b * K + k
    groups: int
    candidates: int

    def to(self, device: torch.device | str) -> "PackedGroups":
        """The same on another device."""
        tensors = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.type is Tensor}
        return replace(self, **tensors)

    @property
    def tokens(self) -> int:
        """Tokens computed, padding included."""
        return self.input_ids_RN.numel()


def grow_tree(prompt: Tokens, candidates: Sequence[Tokens]) -> TokenTree:
    """The token tree of one group. Raises ValueError for an empty prompt or candidate."""
    if not prompt or not all(candidates):
        raise ValueError("a prompt and each of its candidates must have at least one token")
    trunk = len(prompt)
    tokens, positions, subtree_end = list(prompt), list(range(trunk)), [0] * trunk
    sources: list[int] = []
    targets: list[int] = []
    paths: list[list[int]] = [[]] * len(candidates)

    previous: Tokens = []
    path_nodes: list[int] = []  # nodes of the current candidate's tokens ...
    path: list[int] = []  # ... and edges, from the trunk on
    for index in sorted(range(len(candidates)), key=lambda k: candidates[k]):
        candidate = candidates[index]
        shared = _common_prefix(previous, candidate)
        for node in path_nodes[shared:]:
            subtree_end[node] = len(tokens)
        path_nodes = path_nodes[:shared]
        fresh = candidate[len(path_nodes) : len(candidate) - 1]
        path_nodes.extend(range(len(tokens), len(tokens) + len(fresh)))
        positions.extend(range(trunk + len(path_nodes) - len(fresh), trunk + len(path_nodes)))
        tokens.extend(fresh)
        subtree_end.extend([0] * len(fresh))

        path = path[:shared]
        for depth in range(shared, len(candidate)):
            path.append(len(sources))
            sources.append(path_nodes[depth - 1] if depth else trunk - 1)
            targets.append(candidate[depth])
        paths[index] = path
        previous = candidate
    for node in [*range(trunk), *path_nodes]:
        subtree_end[node] = len(tokens)
    return TokenTree(tokens, positions, subtree_end, sources, targets, paths)


def pack_groups(prompts: Sequence[Tokens], candidates: Sequence[Sequence[Tokens]]) -> PackedGroups:
    """Pack B groups into rows no longer than the longest group; shorter groups share a row.

    prompts: B token lists. candidates: B lists of K token lists, the same K in each. Raises ValueError otherwise.
    """
    widths = {len(group) for group in candidates}
    if len(widths) != 1 or len(prompts) != len(candidates):
        raise ValueError(f"expected one K for all groups and one prompt for each, got K in {sorted(widths)}")
    trees = [grow_tree(prompt, group) for prompt, group in zip(prompts, candidates, strict=True)]
    width = max(len(tree.tokens) for tree in trees)
    starts, rows = _place(trees, width)

    input_ids = torch.zeros(rows * width, dtype=torch.long)
    position_ids = torch.zeros(rows * width, dtype=torch.long)
    # A padding token sees itself alone, so no softmax is over nothing.
    subtree_end = torch.arange(1, width + 1).repeat(rows)
    edges: list[tuple[int, int, int]] = []  # (flat source, target, running edge number)
    member_edge: list[int] = []
    member_candidate: list[int] = []
    for b, (tree, start) in enumerate(zip(trees, starts, strict=True)):
        here = slice(start, start + len(tree.tokens))
        input_ids[here] = torch.tensor(tree.tokens)
        position_ids[here] = torch.tensor(tree.positions)
        subtree_end[here] = torch.tensor(tree.subtree_end) + start % width
        for k, path in enumerate(tree.paths):
            member_edge.extend(len(edges) + edge for edge in path)
            member_candidate.extend([b * len(tree.paths) + k] * len(path))
        base = len(edges)
        edges.extend((start + s, t, base + e) for e, (s, t) in enumerate(zip(tree.sources, tree.targets, strict=True)))

    flat_source, target, number = torch.tensor(edges, dtype=torch.long).unbind(1)
    flat_source, order = torch.sort(flat_source, stable=True)
    place = torch.empty_like(order)
    place[number[order]] = torch.arange(len(edges))
    source, edge_source = torch.unique_consecutive(flat_source, return_inverse=True)
    return PackedGroups(
        input_ids_RN=input_ids.view(rows, width),
        position_ids_RN=position_ids.view(rows, width),
        subtree_end_RN=subtree_end.view(rows, width),
        source_S=source,
        edge_source_E=edge_source,
        edge_target_E=target[order],
        member_edge_M=place[torch.tensor(member_edge)],
        member_candidate_M=torch.tensor(member_candidate),
        groups=len(trees),
        candidates=widths.pop(),
    )


def tree_mask(subtree_end_RN: Tensor) -> Tensor:
    """Who may attend whom, (R, 1, N, N) bool, True = visible."""
    index = torch.arange(subtree_end_RN.shape[1], device=subtree_end_RN.device)
    query, key = index[:, None], index[None, :]
    return ((key <= query) & (query < subtree_end_RN[:, None, None, :])).contiguous()


def _common_prefix(left: Tokens, right: Tokens) -> int:
    for depth, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return depth
    return min(len(left), len(right))


def _place(trees: list[TokenTree], width: int) -> tuple[list[int], int]:
    """First-fit decreasing: the flat start of each tree, and the number of rows."""
    starts = [0] * len(trees)
    free: list[int] = []
    for index in sorted(range(len(trees)), key=lambda i: -len(trees[i].tokens)):
        size = len(trees[index].tokens)
        row = next((r for r, space in enumerate(free) if space >= size), None)
        if row is None:
            row = len(free)
            free.append(width)
        starts[index] = row * width + width - free[row]
        free[row] -= size
    return starts, len(free)
