from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpo_ray.objective import check
from cpo_ray.objective.attention import (
    BRANCHES,
    DENSE,
    TREE,
    UnknownAttention,
    _dense_attention,
    attend,
    register,
    use_tree_attention,
)
from cpo_ray.objective.branches import BranchAttention, ScoreRules, find_branches, within_window
from cpo_ray.objective.logprobs import candidate_logps
from cpo_ray.objective.masks import tree_block_mask, tree_mask
from cpo_ray.objective.packing import drop_padding, grow_tree, pack_groups
from tests.objective.conftest import random_groups, separate_logps
from tests.objective.test_packing import groups
from tests.objective.tiny_models import WINDOW, tiny_architecture

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")

# One window for all layers; windows by layer type; chunks; none in this configuration.
WINDOWED = [
    "mistral",
    "phi3",
    "starcoder2",
    "gemma3 text",
    "gemma4 text",
    "qwen2 (window)",
    "olmo3",
    "exaone4",
    "ministral",
]
WINDOWED += ["gemma2", "gpt_oss", "cohere2", "llama4 text", "qwen2"]


def long_groups():
    """Prompts shorter and longer than the window, candidates that begin within it and beyond."""
    prompts, candidates = random_groups(seed=31, groups=3)
    assert max(map(len, prompts)) > WINDOW > min(map(len, prompts))
    return prompts, candidates


@cache
@torch.no_grad()
def definition(name):
    """The separate log-probs of `long_groups`, once for all layouts."""
    return separate_logps(tiny_architecture(name, torch.float64, "eager"), *long_groups())


@pytest.mark.parametrize("name", WINDOWED)
@pytest.mark.parametrize("attention", [DENSE, BRANCHES, TREE])
@torch.no_grad()
def test_windows_are_those_of_separate_rows(name, attention, monkeypatch):
    monkeypatch.setattr("cpo_ray.objective.attention.BRANCH_OVERHEAD", 0)
    prompts, candidates = long_groups()
    model = tiny_architecture(name, torch.float64, "eager")
    register()
    model.set_attn_implementation(attention)
    packed = candidate_logps(model, pack_groups(prompts, candidates))
    torch.testing.assert_close(packed, definition(name), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("attention", [DENSE, BRANCHES])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_through_windows(attention, checkpointing, monkeypatch):
    monkeypatch.setattr("cpo_ray.objective.attention.BRANCH_OVERHEAD", 0)
    prompts, candidates = long_groups()
    model = tiny_architecture("gemma3 text", torch.float64, "eager")
    separate = separate_logps(model, prompts, candidates)
    weights = torch.randn_like(separate)
    expected = torch.autograd.grad((separate * weights).sum(), list(model.parameters()))
    register()
    model.set_attn_implementation(attention)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
    packed = candidate_logps(model, pack_groups(prompts, candidates))
    for mine, theirs in zip(
        torch.autograd.grad((packed * weights).sum(), list(model.parameters())), expected, strict=True
    ):
        assert (mine - theirs).norm() <= 1e-5 * theirs.norm().clamp(min=1)


@given(group=groups, window=st.integers(1, 9), block=st.sampled_from([2, 5, 256]))
def test_branches_within_a_window_are_what_the_mask_says(group, window, block):
    tree = grow_tree(group[0], group[1])
    ends, positions = torch.tensor([tree.subtree_end]), torch.tensor([tree.positions])
    dense = tree_mask(ends, positions, window)[0, 0]
    seen = torch.zeros_like(dense)
    for branch in (within_window(whole, window) for whole in find_branches(tree.subtree_end, block)):
        for query in range(branch.start, branch.end):
            visible = [k for a, b in [*branch.ancestors, (branch.start, query + 1)] for k in range(a, b)]
            seen[query, visible[-window:]] = True
    assert torch.equal(seen, dense)
    blocks = tree_block_mask(ends, positions, window).mask_mod
    index = torch.arange(len(tree.tokens))
    assert [[bool(blocks(torch.tensor(0), 0, q, k)) for k in index] for q in index] == dense.tolist()


@pytest.mark.parametrize("rules", [ScoreRules(0.3, 4), ScoreRules(0.3, None, 1.5), ScoreRules(0.3, 3, 2.0)])
@pytest.mark.parametrize("sinks", [False, True])
def test_branch_attention_with_windows_caps_and_sinks(rules, sinks):
    torch.manual_seed(0)
    packed = drop_padding(pack_groups(*random_groups(seed=12)))
    ends, positions = packed.subtree_end_RN, packed.position_ids_RN
    leaves = [torch.randn(heads, ends.shape[1], size).double() for heads, size in ((4, 8), (2, 8), (2, 6))]
    leaves = [t.requires_grad_() for t in [*leaves, torch.randn(4).double()][: 4 if sinks else 3]]
    query, key, value, *sink = leaves
    branches = find_branches(ends[0].tolist(), block=7)
    if rules.window is not None:
        branches = [within_window(branch, rules.window) for branch in branches]
    ours = BranchAttention.apply(query, key, value, branches, rules, *sink)
    mask = tree_mask(ends, positions, rules.window)
    dense = _dense_attention(query[None], key[None], value[None], mask, rules, sink[0] if sinks else None)[0]
    torch.testing.assert_close(ours, dense, rtol=1e-9, atol=1e-9)
    grad = torch.randn_like(dense)
    expected = torch.autograd.grad(dense, leaves, grad)
    torch.testing.assert_close(torch.autograd.grad(ours, leaves, grad), expected, rtol=1e-9, atol=1e-9)


def test_an_argument_that_may_change_the_numbers_is_not_ignored():
    query = torch.randn(1, 2, 4, 8)
    with pytest.raises(UnknownAttention, match="Module asks for attention with position_bias"):
        attend(torch.nn.Module(), query, query, query, None, position_bias=torch.zeros(1), dropout=0.0)


@torch.no_grad()
def test_ordinary_rows_of_a_model_with_our_attention_are_its_own():
    model = tiny_architecture("gemma2", torch.float64, "eager")
    ids = torch.randint(1, 97, (2, 20))
    expected = model(ids).logits
    register()
    for attention in (DENSE, BRANCHES):
        model.set_attn_implementation(attention)
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["mistral", "gemma2", "gpt_oss", "gemma3 text", "llama4 text"])
def test_the_compiled_kernel_computes_windows_caps_and_sinks(name):
    prompts, candidates = long_groups()
    model = tiny_architecture(name, attention="eager").cuda()
    parameters = list(model.parameters())
    separate = check.separate_logps.__wrapped__(model, prompts, candidates)
    expected = torch.autograd.grad(separate.sum(), parameters, allow_unused=True)
    assert use_tree_attention(model) is None
    packed = candidate_logps(model, pack_groups(prompts, candidates).to("cuda"))
    torch.testing.assert_close(packed, separate, rtol=1e-3, atol=1e-3)
    for mine, theirs in zip(torch.autograd.grad(packed.sum(), parameters, allow_unused=True), expected, strict=True):
        if theirs is not None:
            assert (mine - theirs).norm() <= 1e-3 * theirs.norm().clamp(min=1)
