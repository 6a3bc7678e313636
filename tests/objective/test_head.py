import pytest
import torch

from cpo_ray.objective import logprobs
from cpo_ray.objective.attention import BRANCHES, DENSE, register
from cpo_ray.objective.head import Head, lm_head
from cpo_ray.objective.logprobs import candidate_logps, edge_logps, gold_logits
from cpo_ray.objective.packing import pack_groups
from tests.objective.conftest import random_groups, separate_logps, tiny_model
from tests.objective.tiny_models import tiny_architecture


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.3, None), (1.0, 2.0), (0.5, 1.5)])
def test_gradients_of_a_modified_head_are_autograds(bias, scale, cap, monkeypatch):
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 5 * 50)
    torch.manual_seed(0)
    leaves = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((20, 8), (50, 8), (50,))]
    leaves = leaves if bias else leaves[:2]
    source, target, grad = torch.arange(20).repeat_interleave(2), torch.randint(50, (40,)), torch.randn(40).double()
    hidden, *tensors = leaves
    head = Head(tensors[0], tensors[1] if bias else None, scale, cap)
    logits = scale * torch.nn.functional.linear(hidden, *tensors)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    plain = logits.log_softmax(-1)[source, target]
    chunked = edge_logps(hidden, head, source, target)
    torch.testing.assert_close(chunked, plain, rtol=1e-12, atol=1e-12)
    expected, ours = (torch.autograd.grad(logp, leaves, grad) for logp in (plain, chunked))
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


# Soft caps: gemma2 (scores too), nanochat. Scales: granite, cohere. Biases: phi, gptj. Sinks: gpt_oss. gpt2 has none of them.
@pytest.mark.parametrize("name", ["gemma2", "nanochat", "granite", "cohere", "phi", "gptj", "gpt_oss", "gpt2"])
@pytest.mark.parametrize("attention", [DENSE, BRANCHES])
def test_log_probs_and_gradients_are_the_models_own(name, attention, monkeypatch):
    monkeypatch.setattr("cpo_ray.objective.attention.BRANCH_OVERHEAD", 0)
    prompts, candidates = random_groups(seed=21, groups=2)
    model = tiny_architecture(name, torch.float64, "eager")
    parameters = list(model.parameters())
    separate = separate_logps(model, prompts, candidates)
    weights = torch.randn_like(separate)
    expected = torch.autograd.grad((separate * weights).sum(), parameters, allow_unused=True)
    register()
    if name != "gptj":  # its attention is its own
        model.set_attn_implementation(attention)
    packed = candidate_logps(model, pack_groups(prompts, candidates))
    torch.testing.assert_close(packed, separate, rtol=1e-5, atol=1e-6)
    ours = torch.autograd.grad((packed * weights).sum(), parameters, allow_unused=True)
    for parameter, mine, theirs in zip(model.named_parameters(), ours, expected, strict=True):
        assert (mine is None) == (theirs is None), parameter[0]
        if mine is not None:  # norms compute in float32 whatever the dtype
            assert (mine - theirs).norm() <= 1e-5 * theirs.norm().clamp(min=1), parameter[0]


@torch.no_grad()
def test_gold_logits_of_a_modified_head():
    model = tiny_architecture("cohere", torch.float64)
    (logits,) = gold_logits(model, [[1, 2, 3]], [[4, 5, 6]], [[0, 2]])
    torch.testing.assert_close(logits, model(torch.tensor([[1, 2, 3, 4, 5, 6]])).logits[0, [2, 4]])


def test_a_plain_head_is_a_matrix_alone():
    model = tiny_model("llama", torch.float32)
    assert lm_head(model) == Head(model.lm_head.weight)


def test_a_head_that_is_not_linear_is_named():
    model = tiny_model("llama", torch.float32)
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.raises(ValueError, match="LlamaForCausalLM: the LM head is not a linear layer"):
        lm_head(model)
