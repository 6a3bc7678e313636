import pytest
import torch

from cpo_ray.objective import logprobs
from cpo_ray.objective.logprobs import EdgeLogProbs, candidate_logps, gold_logits, sample_edges
from cpo_ray.objective.packing import pack_groups
from tests.objective.conftest import random_groups, separate_logps, tiny_model


def gradients(model, scalar):
    return torch.cat([g.flatten() for g in torch.autograd.grad(scalar, list(model.parameters()))])


@pytest.mark.parametrize("chunk", [logprobs.CHUNK_ELEMENTS, 7 * 97, 97])
def test_packed_equals_separate_in_float64(model_name, chunk, monkeypatch):
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", chunk)
    model = tiny_model(model_name, torch.float64)
    prompts, candidates = random_groups(seed=1)
    separate = separate_logps(model, prompts, candidates)
    packed = candidate_logps(model, pack_groups(prompts, candidates))
    torch.testing.assert_close(packed, separate, rtol=1e-9, atol=1e-9)
    weights = torch.randn_like(separate)
    expected = gradients(model, (separate * weights).sum())
    # Llama's norm always computes in float32, so its gradients agree only to that precision.
    tolerance = 1e-9 if model_name == "gpt2" else 1e-5
    assert (gradients(model, (packed * weights).sum()) - expected).norm() <= tolerance * expected.norm()


def test_packed_equals_separate_in_float32(model_name):
    model = tiny_model(model_name, torch.float32)
    prompts, candidates = random_groups(seed=2)
    with torch.no_grad():
        packed = candidate_logps(model, pack_groups(prompts, candidates))
        separate = separate_logps(model, prompts, candidates)
    assert packed.dtype == torch.float32
    torch.testing.assert_close(packed.double(), separate, rtol=1e-4, atol=1e-4)


def test_packing_groups_together_does_not_change_their_log_probs(model_name):
    model = tiny_model(model_name, torch.float64)
    prompts, candidates = random_groups(seed=3, groups=6)
    together = candidate_logps(model, pack_groups(prompts, candidates))
    alone = [candidate_logps(model, pack_groups([p], [c]))[0] for p, c in zip(prompts, candidates, strict=True)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-9, atol=1e-9)


def test_log_probs_are_float32_under_bf16():
    model = tiny_model("llama", torch.bfloat16)
    prompts, candidates = random_groups(seed=4)
    with torch.no_grad():
        packed = candidate_logps(model, pack_groups(prompts, candidates))
    assert packed.dtype == torch.float32
    torch.testing.assert_close(packed.double(), separate_logps(model, prompts, candidates), rtol=2e-2, atol=0.5)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_logits_are_not_rounded_to_bf16(device):
    """Near 100, bf16 has a resolution of one half, so log-probs from rounded logits would be off by tenths of a nat."""
    torch.manual_seed(6)
    hidden, weight = (torch.randn(rows, 64, dtype=torch.bfloat16).to(device) for rows in (20, 50))
    hidden[:, 0], weight[:, 0] = 10, 10
    source = target = torch.arange(20, device=device)
    logp = EdgeLogProbs.apply(hidden, weight, source, target)
    exact = (hidden.double() @ weight.double().T).log_softmax(-1)[source, target]
    torch.testing.assert_close(logp.double(), exact, rtol=0, atol=1e-4)


def test_gold_logits_predict_the_given_positions(model_name):
    model = tiny_model(model_name, torch.float32)
    prompts, candidates = random_groups(seed=5)
    golds = [group[0] for group in candidates]
    positions = [[0, len(gold) - 1] for gold in golds]
    with torch.no_grad():
        logits = gold_logits(model, prompts, golds, positions)
        for got, prompt, gold, where in zip(logits, prompts, golds, positions, strict=True):
            full = model(torch.tensor([prompt + gold])).logits[0]
            torch.testing.assert_close(got, full[[len(prompt) - 1 + p for p in where]], rtol=1e-4, atol=1e-4)


def test_edges_are_sampled_from_the_models_distribution(monkeypatch):
    """Ten thousand evenly spaced numbers select each token as often as its probability, to one in ten thousand."""
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 97)
    model = tiny_model("llama", torch.float32)
    packed = pack_groups([[1, 2, 3]], [[[4, 5, 6]]])
    uniform_EN = ((torch.arange(10_000) + 0.5) / 10_000).expand(3, -1)
    sampled_EN = sample_edges(model, packed, uniform_EN)
    with torch.no_grad():
        probability_TV = model(torch.tensor([[1, 2, 3, 4, 5, 6]])).logits[0].softmax(-1)
    for edge, sampled_N in enumerate(sampled_EN[packed.member_edge_M]):
        frequency_V = sampled_N.bincount(minlength=97) / 10_000
        torch.testing.assert_close(frequency_V, probability_TV[2 + edge], rtol=0, atol=2e-4)
