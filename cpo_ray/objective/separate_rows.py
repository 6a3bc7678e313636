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
    paths = _leaf_paths(packed)
    place = _first_places(paths)
    rows = _fill_rows(packed, paths)
    wide = rows.input_ids_RN.shape[1]
    flat = [row * wide + index for row, index in map(place.__getitem__, packed.source_S.tolist())]
    return replace(rows, source_S=torch.tensor(flat, device=packed.source_S.device))


def first_places(packed: PackedGroups) -> Tensor:
    """Where in `path_rows` each token of the trees comes first, (R, N) bool. Padding does not."""
    paths = _leaf_paths(packed)
    first_RN = torch.zeros(len(paths), max(map(len, paths)), dtype=torch.bool)
    first_RN[torch.tensor(list(_first_places(paths).values())).unbind(1)] = True
    return first_RN.to(packed.source_S.device)


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


def _leaf_paths(packed: PackedGroups) -> list[list[int]]:
    """The path to each leaf, in the order of the leaves."""
    width = packed.input_ids_RN.shape[1]
    ends = packed.subtree_end_RN.flatten().tolist()
    leaves = [node for node in packed.source_S.tolist() if ends[node] == node % width + 1]
    paths = find_paths(packed, leaves)
    return [paths[leaf] for leaf in leaves]


def _first_places(paths: list[list[int]]) -> dict[int, tuple[int, int]]:
    """Each node's row and index where it comes first."""
    place: dict[int, tuple[int, int]] = {}
    for row, path in enumerate(paths):
        for index in reversed(range(len(path))):
            if place.setdefault(path[index], (row, index)) != (row, index):
                break  # and so are the nodes before it
    return place


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
