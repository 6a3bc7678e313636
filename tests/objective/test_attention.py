import random

import pytest
import torch
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.testing import CompileCounterWithBackend

from cpo_ray.objective import kernels
from cpo_ray.objective.attention import BRANCHES, TREE, register, tree_attention, use_tree_attention
from cpo_ray.objective.kernels import KERNELS_PER_USE, compile_kernel, kernel_for
from cpo_ray.objective.logprobs import candidate_logps
from cpo_ray.objective.masks import BLOCK, tree_block_mask, tree_mask
from cpo_ray.objective.packing import pack_groups
from tests.objective.conftest import random_groups, tiny_model

# Without a GPU, FlexAttention runs uncompiled and warns.
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")


def test_dense_mask_and_block_mask_are_equal():
    ends = pack_groups(*random_groups(seed=8)).subtree_end_RN
    dense, blocks = tree_mask(ends), tree_block_mask(ends)
    rows, width = ends.shape
    index = torch.arange(width)
    visible = [[[bool(blocks.mask_mod(torch.tensor(r), 0, q, k)) for k in index] for q in index] for r in range(rows)]
    assert visible == dense[:, 0].tolist()


@torch.no_grad()  # FlexAttention has no backward pass on CPU
def test_flex_attention_computes_the_same_log_probs(model_name):
    prompts, candidates = random_groups(seed=9)
    packed = pack_groups(prompts, candidates)
    model = tiny_model(model_name, torch.float32)
    dense = candidate_logps(model, packed)
    register()
    model.set_attn_implementation(TREE)
    torch.testing.assert_close(candidate_logps(model, packed), dense, rtol=1e-4, atol=1e-4)


def test_grouped_query_heads():
    ends = pack_groups(*random_groups(seed=10)).subtree_end_RN
    rows, width = ends.shape
    query = torch.randn(rows, 4, width, 16)
    key, value = torch.randn(2, rows, 2, width, 16)
    flex, _ = tree_attention(torch.nn.Module(), query, key, value, tree_block_mask(ends), scaling=0.25)
    dense = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=tree_mask(ends), scale=0.25, enable_gqa=True
    )
    torch.testing.assert_close(flex, dense.transpose(1, 2), rtol=1e-4, atol=1e-4)


@pytest.mark.e2e
@torch.no_grad()
def test_any_number_and_length_of_rows_takes_a_few_compilations():
    """Every microbatch has a different length. Compiled for each shape, torch would stop compiling after eight."""
    counter = CompileCounterWithBackend("aot_eager")
    attend = compile_kernel(counter)
    for rows, blocks in [(4, 1), (3, 2), *((rows, blocks) for rows in (1, 2, 5) for blocks in (1, 3, 4, 6, 7))]:
        width = blocks * BLOCK
        query, key, value = torch.randn(3, rows, 2, width, 16)
        attend(query, key, value, block_mask=tree_block_mask(torch.full((rows, width), width)))
    assert counter.frame_count <= 5


def test_a_kernel_that_torch_would_leave_uncompiled_is_an_error():
    torch._dynamo.reset()  # it remembers which sizes have varied
    attend = compile_kernel("eager", limit=1)

    def attend_to(width):
        query = torch.randn(1, 2, width, 16)
        return attend(query, query, query, block_mask=tree_block_mask(torch.full((1, width), width)))

    attend_to(BLOCK)
    with pytest.raises(FailOnRecompileLimitHit):
        attend_to(2 * BLOCK)


class Counting:
    """A backend that counts what it is given to compile, by use, and computes nothing."""

    def __init__(self):
        self.compiled = 0

    def __call__(self, graph, inputs):
        self.compiled += 1
        return lambda *given: (
            next(t for t in given if isinstance(t, torch.Tensor) and t.ndim == 4 and t.dtype.is_floating_point),
        )


def test_thirty_shapes_in_every_use_take_a_stated_number_of_kernels(monkeypatch):
    """Scoring, validation and training, over whole trees and windows, in one process: no use crowds out another."""
    torch._dynamo.reset()
    copies = {}

    def copy(use):
        if use not in copies:
            counter = Counting()
            copies[use] = compile_kernel(counter, f"use_{len(copies)}"), counter
        return copies[use][0]

    monkeypatch.setattr(kernels, "compiled_copy", copy)
    draw = random.Random(0)
    shapes = [(draw.randint(1, 5), draw.randint(1, 6)) for _ in range(26)] + [(1, 1), (3, 1), (1, 4), (2, 2)]
    modes = (torch.enable_grad, torch.no_grad, torch.inference_mode)
    for number, (rows, blocks) in enumerate(shapes):
        width = blocks * BLOCK
        ends = torch.full((rows, width), width)
        position = torch.arange(width).expand(rows, -1)
        for mode, reach in ((mode, reach) for mode in modes for reach in (None, 100 + number)):
            with mode():
                query = torch.randn(rows, 4, width, 16)
                key = value = torch.randn(rows, 2, width, 16)
                mask = tree_block_mask(ends, position, reach)
                kernel = kernel_for(query, key, value, mask, cap=None, sinks=False)
                kernel(query, key, value, block_mask=mask, scale=None, enable_gqa=True)
    assert len(copies) == 6
    assert max(counter.compiled for _, counter in copies.values()) <= KERNELS_PER_USE


def test_without_cuda_the_model_attends_by_branches():
    model = tiny_model("llama", torch.float32)
    assert use_tree_attention(model) is None
    assert model.config._attn_implementation == BRANCHES


@pytest.mark.gpu
def test_the_compiled_kernel_agrees_with_sdpa(model_name):
    prompts, candidates = random_groups(seed=11)
    shapes = [pack_groups(prompts, candidates, row_tokens=tokens).to("cuda") for tokens in (256, 384, 512, 700, 1024)]
    model = tiny_model(model_name, torch.float32).cuda()
    dense = [candidate_logps(model, packed) for packed in shapes]
    assert use_tree_attention(model) is None
    for packed, expected in zip(shapes, dense, strict=True):
        torch.testing.assert_close(candidate_logps(model, packed), expected, rtol=1e-3, atol=1e-3)
