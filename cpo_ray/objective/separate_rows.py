"""Packed groups with each path of a tree in a row of its own: for models that cannot compute trees."""

from collections.abc import Collection
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from cpo_ray.objective.packing import PackedGroups


def path_rows(packed: PackedGroups) -> PackedGroups:
    """One right-padded row for each leaf: a candidate that another one continues costs nothing. Edges stay as they are.

    No more rows than candidates, none longer than the longest prompt and candidate.
    """
    width, device = packed.input_ids_RN.shape[1], packed.source_S.device
    sources = packed.source_S.tolist()
    ends = packed.subtree_end_RN.flatten().tolist()
    leaves = [node for node in sources if ends[node] == node % width + 1]
    paths = find_paths(packed, leaves)
    place: dict[int, tuple[int, int]] = {}  # node -> row and index, where it comes first
    for row, leaf in enumerate(leaves):
        for index in reversed(range(len(paths[leaf]))):
            if place.setdefault(paths[leaf][index], (row, index)) != (row, index):
                break  # and so are the nodes before it
    rows = _fill_rows(packed, [paths[leaf] for leaf in leaves])
    wide = rows.input_ids_RN.shape[1]
    source_S = torch.tensor([place[node][0] * wide + place[node][1] for node in sources], device=device)
    return replace(rows, source_S=source_S)


def candidate_rows(packed: PackedGroups) -> PackedGroups:
    """One row for each candidate, and edges of its own: where a token's log-prob depends on how long its row is."""
    device = packed.source_S.device
    candidates = packed.member_candidate_M.tolist()
    starts = [m for m in range(len(candidates)) if not m or candidates[m] != candidates[m - 1]]
    spans = list(pairwise([*starts, len(candidates)]))  # members of each candidate
    node_M = packed.source_S[packed.edge_source_E[packed.member_edge_M]].tolist()
    paths = find_paths(packed, {node_M[b - 1] for _, b in spans})
    rows = _fill_rows(packed, [paths[node_M[b - 1]] for _, b in spans])
    wide = rows.input_ids_RN.shape[1]
    source: list[int] = []
    for row, (a, b) in enumerate(spans):
        length = len(paths[node_M[b - 1]])
        source += range(row * wide + length - (b - a), row * wide + length)
    index_M = torch.arange(len(candidates), device=device)
    return replace(
        rows,
        source_S=torch.tensor(source, device=device),
        edge_source_E=index_M,
        edge_target_E=packed.edge_target_E[packed.member_edge_M],
        member_edge_M=index_M,
    )


def path_lengths(packed: PackedGroups) -> Tensor:
    """For rows of single paths, (R, N): tokens of the prompt and candidate that a token belongs to.

    One more than the path has, because a candidate's last token is no input.
    """
    return packed.position_ids_RN.gather(1, packed.subtree_end_RN - 1) + 2


def find_paths(packed: PackedGroups, nodes: Collection[int]) -> dict[int, list[int]]:
    """The flat indices from the root to each of the nodes, which are flat indices too."""
    width, wanted = packed.input_ids_RN.shape[1], set(nodes)
    found: dict[int, list[int]] = {}
    for row, ends in enumerate(packed.subtree_end_RN.tolist()):
        path: list[int] = []
        for index in range(width):
            while path and ends[path[-1] - row * width] <= index:
                path.pop()
            path.append(row * width + index)
            if path[-1] in wanted:
                found[path[-1]] = list(path)
    return found


def _fill_rows(packed: PackedGroups, paths: list[list[int]]) -> PackedGroups:
    """Rows of these paths. Padding comes after them: no token of a path sees it."""
    device, width = packed.source_S.device, max(map(len, paths))
    length_R1 = torch.tensor([[len(path)] for path in paths], device=device)
    index_RN = torch.arange(width, device=device).expand(len(paths), -1)
    node_RN = torch.tensor([path + [0] * (width - len(path)) for path in paths], device=device)
    real_RN = index_RN < length_R1
    return replace(
        packed,
        input_ids_RN=torch.where(real_RN, packed.input_ids_RN.flatten()[node_RN], 0),
        position_ids_RN=torch.where(real_RN, index_RN, 0),
        subtree_end_RN=torch.where(real_RN, length_R1, index_RN + 1),
    )
