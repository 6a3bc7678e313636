import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpo_ray.objective.masks import tree_mask
from cpo_ray.objective.packing import drop_padding, grow_tree, pack_groups

tokens = st.lists(st.integers(0, 4), min_size=1, max_size=8)
groups = st.tuples(tokens, st.lists(tokens, min_size=1, max_size=6))


def ancestors(tree, node):
    """The nodes that `node` may attend, by the rule of the mask."""
    return [j for j in range(node + 1) if node < tree.subtree_end[j]]


@given(groups)
def test_every_path_spells_its_candidate(group):
    prompt, candidates = group
    tree = grow_tree(prompt, candidates)
    for path, candidate in zip(tree.paths, candidates, strict=True):
        assert [tree.targets[edge] for edge in path] == candidate


@given(groups)
def test_a_token_attends_exactly_its_prefix(group):
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


@given(st.lists(st.tuples(tokens, st.tuples(tokens, tokens)), min_size=1, max_size=5, unique_by=lambda g: tuple(g[0])))
def test_groups_in_one_row_do_not_attend_each_other(batch):
    packed = pack_groups([prompt for prompt, _ in batch], [list(group) for _, group in batch])
    visible = tree_mask(packed.subtree_end_RN)[:, 0]
    expected = sum(len(tree.tokens) for tree in (grow_tree(p, list(g)) for p, g in batch))
    starts = (packed.position_ids_RN == 0) & visible.sum(-1).eq(1)
    assert visible.diagonal(dim1=1, dim2=2).all()
    assert packed.tokens >= expected
    assert starts.sum() >= len(batch)


def test_groups_with_the_same_prompt_share_it():
    prompt, gold, other = [1, 2, 3], [5, 6, 7, 0], [5, 8, 0]
    apart = pack_groups([prompt, [9, 2, 3]], [[gold], [other]])
    together = pack_groups([prompt, prompt], [[gold], [other]])
    assert (apart.source_S.numel(), together.source_S.numel()) == (7, 5)
    assert together.input_ids_RN.tolist() == [[1, 2, 3, 5, 6, 7, 8]]
    assert together.member_candidate_M.tolist() == [0] * 4 + [1] * 3
    assert together.edge_target_E[together.member_edge_M].tolist() == gold + other


def test_groups_too_long_for_one_row_together_get_separate_trees():
    prompt, first, second = [1, 2, 3], [5, 6, 7, 0], [8, 9, 7, 0]
    packed = pack_groups([prompt, prompt], [[first], [second]], row_tokens=6)
    assert packed.input_ids_RN.tolist() == [[1, 2, 3, 5, 6, 7], [1, 2, 3, 8, 9, 7]]


def test_rows_have_the_requested_length():
    packed = pack_groups([[1], [2], [3]], [[[5, 6, 0]], [[7, 0]], [[8, 9, 9, 0]]], row_tokens=5)
    assert packed.input_ids_RN.tolist() == [[3, 8, 9, 9, 0], [1, 5, 6, 2, 7]]
    with pytest.raises(ValueError, match="group 1 needs 3 tokens, but a row has 2"):
        pack_groups([[1], [2, 2]], [[[5, 0]], [[7, 0]]], row_tokens=2)


@given(st.lists(st.tuples(tokens, st.tuples(tokens, tokens)), min_size=1, max_size=5, unique_by=lambda g: tuple(g[0])))
def test_without_padding_the_trees_are_the_same(batch):
    prompts, candidates = [prompt for prompt, _ in batch], [list(group) for _, group in batch]
    padded = pack_groups(prompts, candidates)
    one_row = drop_padding(padded)
    assert one_row.tokens == sum(len(grow_tree(p, c).tokens) for p, c in zip(prompts, candidates, strict=True))
    flat_ids, sees = padded.input_ids_RN.flatten(), tree_mask(one_row.subtree_end_RN)[0, 0]
    assert one_row.input_ids_RN[0, one_row.source_S].tolist() == flat_ids[padded.source_S].tolist()
    assert sees.sum(1).tolist() == (one_row.position_ids_RN[0] + 1).tolist()


def test_targets_may_differ_from_the_inputs():
    inputs, targets = [[5, 6, 0], [5, 7, 0]], [[1, 2, 3], [1, 4, 3]]
    tree = grow_tree([9], inputs, targets)
    assert tree.tokens == [9, 5, 6, 7]
    assert [[tree.targets[edge] for edge in path] for path in tree.paths] == targets
    # The inputs share their first token but the targets differ, so no edge past the first difference is shared.
    assert tree.paths[0][:1] == tree.paths[1][:1]
    assert tree.paths[0][1] != tree.paths[1][1]


def test_bad_groups_are_refused():
    with pytest.raises(ValueError, match="at least one token"):
        grow_tree([], [[1]])
    with pytest.raises(ValueError, match="at least one token"):
        grow_tree([1], [[1], []])
    with pytest.raises(ValueError, match="one K"):
        pack_groups([[1], [2]], [[[1]], [[1], [2]]])
