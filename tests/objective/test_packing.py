import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpo_ray.objective.packing import grow_tree, pack_groups, tree_mask

tokens = st.lists(st.integers(0, 4), min_size=1, max_size=8)
groups = st.tuples(tokens, st.lists(tokens, min_size=1, max_size=6))


def ancestors(tree, node):
    """Nodes that see `node`'s branch, by the definition of a prefix: read off the mask's rule."""
    return [j for j in range(node + 1) if node < tree.subtree_end[j]]


@given(groups)
def test_every_path_spells_its_candidate(group):
    prompt, candidates = group
    tree = grow_tree(prompt, candidates)
    for path, candidate in zip(tree.paths, candidates, strict=True):
        assert [tree.targets[edge] for edge in path] == candidate


@given(groups)
def test_a_token_sees_exactly_its_prefix(group):
    prompt, candidates = group
    tree = grow_tree(prompt, candidates)
    for path, candidate in zip(tree.paths, candidates, strict=True):
        for depth, edge in enumerate(path):
            seen = ancestors(tree, tree.sources[edge])
            assert [tree.tokens[j] for j in seen] == prompt + candidate[:depth]
            assert [tree.positions[j] for j in seen] == list(range(len(prompt) + depth))


@given(groups)
def test_shared_prefixes_are_computed_once(group):
    prompt, candidates = group
    tree = grow_tree(prompt, candidates)
    inner = {tuple(c[:depth]) for c in candidates for depth in range(1, len(c))}
    edges = {tuple(c[:depth]) for c in candidates for depth in range(1, len(c) + 1)}
    assert len(tree.tokens) == len(prompt) + len(inner)
    assert len(tree.targets) == len(edges)


def test_a_truncation_costs_one_edge_and_no_token():
    gold = [5, 6, 7, 8, 0]
    alone, both = grow_tree([1, 2], [gold]), grow_tree([1, 2], [gold, [5, 6, 0]])
    assert len(both.tokens) == len(alone.tokens)
    assert len(both.targets) == len(alone.targets) + 1


@given(st.lists(st.tuples(tokens, st.tuples(tokens, tokens)), min_size=1, max_size=5))
def test_groups_in_one_row_do_not_see_each_other(batch):
    packed = pack_groups([prompt for prompt, _ in batch], [list(group) for _, group in batch])
    visible = tree_mask(packed.subtree_end_RN)[:, 0]
    expected = sum(len(tree.tokens) for tree in (grow_tree(p, list(g)) for p, g in batch))
    starts = (packed.position_ids_RN == 0) & visible.sum(-1).eq(1)
    assert visible.diagonal(dim1=1, dim2=2).all()
    assert packed.tokens >= expected
    assert starts.sum() >= len(batch)


def test_bad_groups_are_refused():
    with pytest.raises(ValueError, match="at least one token"):
        grow_tree([], [[1]])
    with pytest.raises(ValueError, match="at least one token"):
        grow_tree([1], [[1], []])
    with pytest.raises(ValueError, match="one K"):
        pack_groups([[1], [2]], [[[1]], [[1], [2]]])
