import pytest
import torch
from hypothesis import given

from cpo_ray.objective import attention
from cpo_ray.objective.attention import BRANCHES, arrange, use_tree_attention
from cpo_ray.objective.branches import BranchAttention, find_branches
from cpo_ray.objective.logprobs import candidate_logps
from cpo_ray.objective.masks import tree_mask
from cpo_ray.objective.packing import drop_padding, grow_tree, pack_groups
from tests.objective.conftest import random_groups, separate_logps, tiny_model
from tests.objective.test_packing import groups


@pytest.mark.parametrize("block", [2, 5, 256])
@given(group=groups)
def test_branches_attend_what_the_mask_allows(block, group):
    ends = grow_tree(group[0], group[1]).subtree_end
    seen = torch.zeros(len(ends), len(ends), dtype=torch.bool)
    for branch in find_branches(ends, block):
        assert branch.end - branch.start <= block
        for query in range(branch.start, branch.end):
            assert not seen[query].any(), "a token in two branches"
            for a, b in [*branch.ancestors, (branch.start, query + 1)]:
                seen[query, a:b] = True
    assert torch.equal(seen, tree_mask(torch.tensor([ends]))[0, 0])


@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_branch_attention_and_its_gradients_are_those_of_a_dense_mask(key_heads):
    torch.manual_seed(0)
    ends = drop_padding(pack_groups(*random_groups(seed=12))).subtree_end_RN
    tokens = ends.shape[1]
    query, grad = torch.randn(2, 4, tokens, 8, dtype=torch.float64)
    key, value = torch.randn(2, key_heads, tokens, 8, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in (query.clone(), key.clone(), value.clone())]
    out_NHD = BranchAttention.apply(*leaves, find_branches(ends[0].tolist(), block=7), 0.3)
    ours = torch.autograd.grad(out_NHD, leaves, grad.transpose(0, 1))
    dense = torch.nn.functional.scaled_dot_product_attention(
        *(t[None] for t in leaves), attn_mask=tree_mask(ends), scale=0.3, enable_gqa=True
    )
    torch.testing.assert_close(out_NHD.transpose(0, 1), dense[0], rtol=1e-9, atol=1e-9)
    expected = torch.autograd.grad(dense[0], leaves, grad)
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_log_probs_and_gradients_by_branches(model_name, checkpointing, monkeypatch):
    monkeypatch.setattr(attention, "BRANCH_OVERHEAD", 0)
    prompts, candidates = random_groups(seed=13)
    model = tiny_model(model_name, torch.float64)
    separate = separate_logps(model, prompts, candidates)
    weights = torch.randn_like(separate)
    expected = torch.autograd.grad((separate * weights).sum(), list(model.parameters()))
    assert use_tree_attention(model) is None
    assert model.config._attn_implementation == BRANCHES
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
    packed = candidate_logps(model, pack_groups(prompts, candidates, row_tokens=150))
    torch.testing.assert_close(packed, separate, rtol=1e-9, atol=1e-9)
    # Llama's norm always computes in float32, so its gradients agree only to that precision.
    tolerance = 1e-9 if model_name == "gpt2" else 1e-5
    for mine, theirs in zip(
        torch.autograd.grad((packed * weights).sum(), list(model.parameters())), expected, strict=True
    ):
        assert (mine - theirs).norm() <= tolerance * theirs.norm().clamp(min=1)


def test_bf16_by_branches_is_near_float32(monkeypatch):
    monkeypatch.setattr(attention, "BRANCH_OVERHEAD", 0)
    prompts, candidates = random_groups(seed=14)
    exact = tiny_model("llama", torch.float32)
    rounded = tiny_model("llama", torch.bfloat16)
    use_tree_attention(rounded)
    with torch.no_grad():
        expected = candidate_logps(exact, pack_groups(prompts, candidates))
        packed = candidate_logps(rounded, pack_groups(prompts, candidates))
    torch.testing.assert_close(packed, expected, rtol=2e-2, atol=0.5)


def test_small_trees_use_a_dense_mask(monkeypatch):
    model = tiny_model("llama", torch.float64)
    use_tree_attention(model)
    packed = pack_groups(*random_groups(seed=15))
    assert arrange(model, packed)[1].branches is None
    dense = candidate_logps(model, packed)
    monkeypatch.setattr(attention, "BRANCH_OVERHEAD", 0)
    assert arrange(model, packed)[1].branches
    torch.testing.assert_close(candidate_logps(model, packed), dense, rtol=1e-9, atol=1e-9)
