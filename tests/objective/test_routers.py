import pytest
import torch

from cpo_ray.objective.architectures import Layout, set_layout
from cpo_ray.objective.attention import use_tree_attention
from cpo_ray.objective.logprobs import balanced_logps, candidate_logps
from cpo_ray.objective.packing import pack_groups
from cpo_ray.objective.routers import find_routers, router_fault, router_notice
from tests.objective.tiny_models import tiny_architecture

# Two groups: the prompts, and candidates of which the second is a truncation and the third shares a prefix with the first.
PROMPTS = [[5, 6, 7], [8, 9]]
CANDIDATES = [[[1, 2, 3, 0], [1, 0], [1, 4, 0]], [[3, 3, 0], [3, 0], [2, 2, 2, 2, 0]]]


def by_definition(model):
    """E * sum over experts of (assignments per token) * (mean probability), over distinct prefixes of the texts and layers."""
    seen = {}
    for prompt, group in zip(PROMPTS, CANDIDATES, strict=True):
        for candidate in group:
            ids = (prompt + candidate)[:-1]
            layers = model(torch.tensor([ids]), output_router_logits=True).router_logits
            for index in range(len(ids)):
                seen.setdefault(tuple(ids[: index + 1]), torch.stack([layer[index] for layer in layers]))
    assert len(seen) == 15
    probabilities = torch.stack(list(seen.values())).softmax(dim=-1).flatten(0, 1)  # (tokens * layers, experts)
    chosen = torch.zeros_like(probabilities).scatter(1, probabilities.topk(2, dim=-1).indices, 1.0)
    return 4 * (chosen.mean(dim=0) * probabilities.mean(dim=0)).sum()


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("separate", [None, "a test asks for it"])
def test_every_token_of_a_tree_counts_once_whatever_the_layout(name, separate):
    model = tiny_architecture(name, torch.float64)
    expected = by_definition(model)
    use_tree_attention(model)
    set_layout(model, Layout(separate))
    packed = pack_groups(PROMPTS, CANDIDATES, row_tokens=24)  # with padding
    logps_BK, loss = balanced_logps(model, packed, find_routers(model))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(logps_BK, candidate_logps(model, packed))


def test_even_probabilities_have_the_least_loss():
    """Probabilities of 1 / E: E * sum of (assignments per token) / E = top-k, whichever experts are chosen."""
    model = tiny_architecture("mixtral")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("mlp.gate.weight"):
                parameter.zero_()
    _, loss = balanced_logps(model, pack_groups(PROMPTS, CANDIDATES), find_routers(model))
    assert loss.item() == pytest.approx(2.0)


def test_gradients_reach_the_routers_also_with_activation_checkpointing():
    gradients = []
    for checkpointing in (False, True):
        model = tiny_architecture("mixtral", torch.float64)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.train()
        _, loss = balanced_logps(model, pack_groups(PROMPTS, CANDIDATES), find_routers(model))
        loss.backward()
        gradients.append([layer.mlp.gate.weight.grad for layer in model.model.layers])
    assert all(gradient.norm() > 1e-4 for gradient in gradients[0])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_line_says_whether_the_loss_is_on():
    mixtral = tiny_architecture("mixtral")
    assert router_notice(mixtral, 0.0) == "the routers' auxiliary loss is off (training.router_auxiliary_loss: 0)"
    assert router_notice(mixtral, 0.01).startswith("the routers' auxiliary loss is on: 0.01 times it is added")
    assert router_notice(tiny_architecture("llama"), 0.0) is None


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("mixtral", None),
        ("llama", "a `llama` of this configuration has no routers"),
        ("deepseek_v3", "transformers has no auxiliary loss for the routers of a `deepseek_v3`"),
    ],
)
def test_models_without_such_a_loss_are_named(name, fault):
    model = tiny_architecture(name)
    assert router_fault(model.config) == fault
    if fault is not None:
        with pytest.raises(ValueError, match=r"training\.router_auxiliary_loss: .*routers"):
            find_routers(model)
