"""Packs groups as token trees, so that every shared prefix is computed once.

The prompt is the trunk, and each candidate is a branch from the token where it first differs. A truncation negative is
then the gold plus one edge to EOS, a duplicate is the same leaf, and groups with the same prompt share its trunk, all
without special cases. In depth-first order a token may attend exactly the tokens whose subtree contains it, so the whole
attention pattern is one integer per token:

    query i sees key j   iff   j <= i < subtree_end[j]

A continuation's log-prob is a sum over the edges (source, target) of its path. A source is a token whose hidden state
goes through the LM head; a target does not have to be an input, so final tokens cost nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from cpo_ray.records import Tokens


@dataclass(frozen=True)
class TokenTree:
    """One group in depth-first order, as plain lists. N nodes, E edges, K candidates."""

    tokens: Tokens  # (N,)
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
    member_edge_M: Tensor  # which edge, in the order of candidates and their tokens ...
    member_candidate_M: Tensor  # ... belongs to which candidate, b * K + k; ascending
    groups: int
    candidates: int

    def to(self, device: torch.device | str) -> "PackedGroups":
        """A copy on another device."""
        tensors = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.type is Tensor}
        return replace(self, **tensors)

    @property
    def tokens(self) -> int:
        """Tokens computed, padding included."""
        return self.input_ids_RN.numel()


def grow_tree(prompt: Tokens, candidates: Sequence[Tokens], targets: Sequence[Tokens] | None = None) -> TokenTree:
    """The token tree of one prompt.

    targets: the token to predict at each position of a candidate; by default the candidate itself.
    Raises ValueError for an empty prompt or candidate.
    """
    if not prompt or not all(candidates):
        raise ValueError("a prompt and each of its candidates must have at least one token")
    wanted = candidates if targets is None else targets
    trunk = len(prompt)
    tokens, positions, subtree_end = list(prompt), list(range(trunk)), [0] * trunk
    edge_sources: list[int] = []
    edge_targets: list[int] = []
    paths: list[list[int]] = [[]] * len(candidates)

    previous: Tokens = []
    previous_wanted: Tokens = []
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

        path = path[: min(shared, _common_prefix(previous_wanted, wanted[index]))]
        for depth in range(len(path), len(candidate)):
            path.append(len(edge_sources))
            edge_sources.append(path_nodes[depth - 1] if depth else trunk - 1)
            edge_targets.append(wanted[index][depth])
        paths[index] = path
        previous, previous_wanted = candidate, wanted[index]
    for node in [*range(trunk), *path_nodes]:
        subtree_end[node] = len(tokens)
    return TokenTree(tokens, positions, subtree_end, edge_sources, edge_targets, paths)


def fill_up(candidates: Sequence[Sequence[Tokens]]) -> list[list[Tokens]]:
    """The groups with one K for all: shorter ones get copies of their gold, which a tree has already, so they cost nothing."""
    k_candidates = max(map(len, candidates), default=0)
    return [[*group, *[group[0]] * (k_candidates - len(group))] for group in candidates]


def pack_groups(
    prompts: Sequence[Tokens],
    candidates: Sequence[Sequence[Tokens]],
    *,
    targets: Sequence[Sequence[Tokens]] | None = None,
    row_tokens: int | None = None,
) -> PackedGroups:
    """Pack B groups into rows, several to a row; groups with the same prompt share it.

    prompts: B token lists. candidates: B lists of K token lists, the same K in each. targets: as in `grow_tree`.
    row_tokens: the length of every row; by default that of the longest tree, which wastes least because attention costs
    the square of a row. Raises ValueError for lists of different lengths and for a group longer than a row.
    """
    widths = {len(group) for group in candidates}
    if len(widths) != 1 or len(prompts) != len(candidates):
        raise ValueError(f"expected one K for all groups and one prompt for each, got K in {sorted(widths)}")
    k_candidates = widths.pop()
    trees, members = _grow_trees(prompts, candidates, targets, row_tokens)
    width = row_tokens or max(len(tree.tokens) for tree in trees)
    starts, rows = _place(trees, width)

    input_ids = torch.zeros(rows * width, dtype=torch.long)
    position_ids = torch.zeros(rows * width, dtype=torch.long)
    # A padding token attends only itself, so no softmax is empty.
    subtree_end = torch.arange(1, width + 1).repeat(rows)
    edges: list[tuple[int, int, int]] = []  # (flat source, target, running edge number)
    member_edge: list[int] = []
    member_candidate: list[int] = []
    for tree, groups, start in zip(trees, members, starts, strict=True):
        here = slice(start, start + len(tree.tokens))
        input_ids[here] = torch.tensor(tree.tokens)
        position_ids[here] = torch.tensor(tree.positions)
        subtree_end[here] = torch.tensor(tree.subtree_end) + start % width
        for index, path in enumerate(tree.paths):
            b, k = groups[index // k_candidates], index % k_candidates
            member_edge.extend(len(edges) + edge for edge in path)
            member_candidate.extend([b * k_candidates + k] * len(path))
        base = len(edges)
        edges.extend((start + s, t, base + e) for e, (s, t) in enumerate(zip(tree.sources, tree.targets, strict=True)))

    flat_source, target, number = torch.tensor(edges, dtype=torch.long).unbind(1)
    flat_source, order = torch.sort(flat_source, stable=True)
    place = torch.empty_like(order)
    place[number[order]] = torch.arange(len(edges))
    by_candidate = torch.sort(torch.tensor(member_candidate), stable=True)  # trees may stand in another order
    source, edge_source = torch.unique_consecutive(flat_source, return_inverse=True)
    return PackedGroups(
        input_ids_RN=input_ids.view(rows, width),
        position_ids_RN=position_ids.view(rows, width),
        subtree_end_RN=subtree_end.view(rows, width),
        source_S=source,
        edge_source_E=edge_source,
        edge_target_E=target[order],
        member_edge_M=place[torch.tensor(member_edge)[by_candidate.indices]],
        member_candidate_M=by_candidate.values,
        groups=len(prompts),
        candidates=k_candidates,
    )


def widen(packed: PackedGroups, multiple: int) -> PackedGroups:
    """Pad the rows to a multiple of `multiple` tokens, for kernels that work on blocks of tokens."""
    rows, width = packed.input_ids_RN.shape
    wide = -(-width // multiple) * multiple
    extra = (0, wide - width)
    subtree_end_RN = torch.arange(1, wide + 1, device=packed.source_S.device).repeat(rows, 1)
    subtree_end_RN[:, :width] = packed.subtree_end_RN
    return replace(
        packed,
        input_ids_RN=pad(packed.input_ids_RN, extra),
        position_ids_RN=pad(packed.position_ids_RN, extra),
        subtree_end_RN=subtree_end_RN,
        source_S=packed.source_S // width * wide + packed.source_S % width,
    )


def real_tokens(packed: PackedGroups) -> Tensor:
    """Which tokens are no padding, (R, N) bool."""
    width = packed.subtree_end_RN.shape[1]
    # A real token has descendants or is a leaf, and a leaf is always a source. Padding attends only itself and is no source.
    real_RN = packed.subtree_end_RN > torch.arange(1, width + 1, device=packed.source_S.device)
    real_RN.view(-1)[packed.source_S] = True
    return real_RN


def drop_padding(packed: PackedGroups) -> PackedGroups:
    """The same trees in one row without padding, for attention that computes only the pairs of tokens that attend."""
    rows, width = packed.input_ids_RN.shape
    flat_end = (
        packed.subtree_end_RN + torch.arange(0, rows * width, width, device=packed.source_S.device)[:, None]
    ).flatten()
    real = real_tokens(packed).flatten()
    before = torch.cat([real.new_zeros(1, dtype=torch.long), real.cumsum(0)])  # real tokens before each position
    return replace(
        packed,
        input_ids_RN=packed.input_ids_RN.flatten()[real][None],
        position_ids_RN=packed.position_ids_RN.flatten()[real][None],
        subtree_end_RN=before[flat_end[real]][None],
        source_S=before[packed.source_S],
    )


def _grow_trees(
    prompts: Sequence[Tokens],
    candidates: Sequence[Sequence[Tokens]],
    targets: Sequence[Sequence[Tokens]] | None,
    row_tokens: int | None,
) -> tuple[list[TokenTree], list[list[int]]]:
    """One tree per distinct prompt, with the groups in each. If that tree is longer than a row, one tree per group."""
    together: dict[tuple[int, ...], list[int]] = {}
    for b, prompt in enumerate(prompts):
        together.setdefault(tuple(prompt), []).append(b)

    def grow(groups: list[int]) -> TokenTree:
        wanted = None if targets is None else [target for b in groups for target in targets[b]]
        return grow_tree(prompts[groups[0]], [c for b in groups for c in candidates[b]], wanted)

    trees, members = [], []
    for groups in together.values():
        tree = grow(groups)
        fits = row_tokens is None or len(tree.tokens) <= row_tokens
        for part in [groups] if fits or len(groups) == 1 else [[b] for b in groups]:
            grown = tree if part is groups else grow(part)
            if row_tokens is not None and len(grown.tokens) > row_tokens:
                raise ValueError(f"group {part[0]} needs {len(grown.tokens)} tokens, but a row has {row_tokens}")
            trees.append(grown)
            members.append(part)
    return trees, members


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
