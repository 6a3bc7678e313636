import pytest
import torch
from hypothesis import given

from cpo_ray.objective.architectures import Layout, layout_of, set_layout
from cpo_ray.objective.attention import BRANCHES, DENSE, register, use_tree_attention
from cpo_ray.objective.logprobs import candidate_logps, gold_logits, sample_edges
from cpo_ray.objective.packing import pack_groups
from cpo_ray.objective.separate_rows import candidate_rows, path_lengths, path_rows
from tests.objective.conftest import random_groups, separate_logps, tiny_model
from tests.objective.test_packing import groups
from tests.objective.tiny_models import tiny_architecture

LIMIT = 16  # of the models whose rotary embedding depends on the length
BY_LENGTH = ["llama (dynamic NTK)", "llama (longrope)"]


def fresh_logps(name, prompts, candidates, dtype=torch.float64):
    """`separate_logps` by a model that has seen no other row: a dynamic rotary embedding remembers the longest."""
    rows = [
        [separate_logps(tiny_architecture(name, dtype, "eager"), [prompt], [[candidate]])[0, 0] for candidate in group]
        for prompt, group in zip(prompts, candidates, strict=True)
    ]
    return torch.stack([torch.stack(row) for row in rows])


@given(group=groups)
def test_every_path_is_in_a_row_and_rows_cost_no_more_than_padding(group):
    prompt, candidates = group
    packed = pack_groups([prompt], [candidates])
    for rows in (path_rows(packed), candidate_rows(packed)):
        count, width = rows.input_ids_RN.shape
        assert count <= len(candidates)
        assert width <= len(prompt) + max(map(len, candidates)) - 1
        texts = rows.input_ids_RN.tolist()
        for k, candidate in enumerate(candidates):
            edges = rows.member_edge_M[rows.member_candidate_M == k]
            assert rows.edge_target_E[edges].tolist() == candidate
            for depth, source in enumerate(rows.source_S[rows.edge_source_E[edges]].tolist()):
                row, index = divmod(source, width)
                assert index == len(prompt) - 1 + depth
                assert texts[row][: index + 1] == (prompt + candidate)[: index + 1]


def test_log_probs_and_gradients_by_rows(model_name):
    prompts, candidates = random_groups(seed=41)
    model = tiny_model(model_name, torch.float64)
    separate = separate_logps(model, prompts, candidates)
    weights = torch.randn_like(separate)
    expected = torch.autograd.grad((separate * weights).sum(), list(model.parameters()))
    for own_logits in (False, True):
        set_layout(model, Layout("a test asks for it", own_logits=own_logits))
        rows = candidate_logps(model, pack_groups(prompts, candidates, row_tokens=150))
        torch.testing.assert_close(rows, separate, rtol=1e-9, atol=1e-9)
        for mine, theirs in zip(
            torch.autograd.grad((rows * weights).sum(), list(model.parameters())), expected, strict=True
        ):
            assert (mine - theirs).norm() <= 1e-5 * theirs.norm().clamp(min=1)


# State spaces, convolutions, linear attention, ALiBi, and a head of several layers.
@pytest.mark.parametrize(
    "name", ["mamba", "mamba2", "lfm2", "qwen3_next", "bloom", "falcon (ALiBi)", "modernbert_decoder"]
)
@torch.no_grad()
def test_what_mixes_tokens_otherwise_gets_rows_of_its_own(name):
    prompts, candidates = random_groups(seed=42, groups=2)
    model = tiny_architecture(name, torch.float64)
    separate = separate_logps(model, prompts, candidates)
    assert use_tree_attention(model) is None
    packed = pack_groups(prompts, candidates)
    torch.testing.assert_close(candidate_logps(model, packed), separate, rtol=1e-6, atol=1e-6)
    assert layout_of(model).notice.startswith("each continuation is computed in a row of its own")
    golds = [group[0] for group in candidates]
    for logits, prompt, gold in zip(gold_logits(model, prompts, golds, [[0, 2]] * 2), prompts, golds, strict=True):
        own = model(torch.tensor([prompt + gold])).logits[0, [len(prompt) - 1, len(prompt) + 1]]
        torch.testing.assert_close(logits.double(), own.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", BY_LENGTH)
@pytest.mark.parametrize("attention", [DENSE, BRANCHES])
@torch.no_grad()
def test_lengths_on_both_sides_of_a_rotary_switch(name, attention, monkeypatch):
    monkeypatch.setattr("cpo_ray.objective.attention.BRANCH_OVERHEAD", 0)
    prompts, candidates = random_groups(seed=43, groups=4)
    lengths = {len(p) + len(c) for p, group in zip(prompts, candidates, strict=True) for c in group}
    assert min(lengths) < LIMIT < max(lengths)
    separate = fresh_logps(name, prompts, candidates)
    model = tiny_architecture(name, torch.float64)
    register()
    model.set_attn_implementation(attention)
    for _ in range(2):  # and no row leaves its length to the next
        packed = candidate_logps(model, pack_groups(prompts, candidates))
        torch.testing.assert_close(packed, separate, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_gold_logits_and_samples_by_length():
    """Two golds on one prompt, of lengths on both sides of the switch."""
    name, prompt, golds = BY_LENGTH[1], [1, 2, 3, 4], [[5, 6, 7], [5, 6, 7, *range(20, 35)]]
    own = [tiny_architecture(name)(torch.tensor([prompt + gold])).logits[0] for gold in golds]
    model = tiny_architecture(name)
    for got, logits in zip(gold_logits(model, [prompt] * 2, golds, [[0, 1]] * 2), own, strict=True):
        torch.testing.assert_close(got, logits[3:5], rtol=1e-4, atol=1e-4)
    packed = pack_groups([prompt], [[golds[1]]])
    uniform_EN = ((torch.arange(1000) + 0.5) / 1000).expand(len(golds[1]), -1)
    drawn_EN = sample_edges(model, packed, uniform_EN)
    for edge, drawn_N in enumerate(drawn_EN[packed.member_edge_M]):
        torch.testing.assert_close(
            drawn_N.bincount(minlength=97) / 1000, own[1][3 + edge].softmax(-1), rtol=0, atol=2e-3
        )


def test_below_the_switch_prompts_are_shared():
    model = tiny_architecture("llama (longrope)")
    packed = pack_groups([[1, 2]], [[[3, 4], [5, 6]]])
    assert layout_of(model) == Layout(length_limit=LIMIT)
    assert path_lengths(path_rows(packed)).tolist() == [[4, 4, 4], [4, 4, 4]]
    torch.testing.assert_close(
        candidate_logps(model, packed).double(), fresh_logps("llama (longrope)", [[1, 2]], [[[3, 4], [5, 6]]]),
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip


@torch.no_grad()
def test_gold_logits_of_prompts_that_come_back():
    """Groups of one prompt share a tree, whatever stands between them."""
    model = tiny_model("llama", torch.float32)
    prompts, golds = [[1, 2], [3], [1, 2]], [[4, 5, 6], [7], [8, 9]]
    for logits, prompt, gold in zip(gold_logits(model, prompts, golds, [[0], [0], [1]]), prompts, golds, strict=True):
        own = model(torch.tensor([prompt + gold])).logits[0]
        where = len(prompt) - 1 + (gold == [8, 9])
        torch.testing.assert_close(logits[0], own[where], rtol=1e-4, atol=1e-4)
