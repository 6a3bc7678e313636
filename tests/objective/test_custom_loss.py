"""A loss of the user's own needs nothing but the log-probs: the recipe of docs/architecture.md, "Where do I change ...?"."""

import torch
import torch.nn.functional as F
from torch import Tensor

from cpo_ray.objective.logprobs import candidate_logps
from cpo_ray.objective.losses import cpo_loss, joint_loss
from cpo_ray.objective.packing import pack_groups
from tests.objective.conftest import random_groups, tiny_model


def hinge_loss(policy_logps_BK: Tensor, ref_logps_BK: Tensor, beta: float, margin: float) -> Tensor:
    """max(0, margin - (s_gold - s_k)), averaged over the negatives k, as in SLiC: (B,)."""
    scores_BK = beta * (policy_logps_BK - ref_logps_BK)
    return F.relu(margin - (scores_BK[:, :1] - scores_BK[:, 1:])).mean(dim=1)


def test_one_step_on_a_custom_loss_lowers_it():
    model = tiny_model("llama", torch.float32)
    prompts, candidates = random_groups(seed=21)
    packed = pack_groups(prompts, candidates)
    with torch.no_grad():
        ref_BK = candidate_logps(model, packed)

    def loss() -> Tensor:
        return hinge_loss(candidate_logps(model, packed), ref_BK, beta=1.0, margin=2.0).mean()

    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = loss()
    before.backward()
    optimizer.step()
    assert before.item() == 2.0  # the policy is the reference, so every score is 0
    assert loss().item() < before.item()


def test_a_custom_loss_takes_the_place_of_cpo_in_the_joint_loss():
    policy_BK, ref_BK = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    custom_B, cpo_B = hinge_loss(policy_BK, ref_BK, 1.0, 2.0), cpo_loss(policy_BK, ref_BK, beta=1.0)
    weights = {"mle_weight": 0.5, "gold_floor_weight": 2.0}
    difference = joint_loss(custom_B, policy_BK, ref_BK, **weights) - joint_loss(cpo_B, policy_BK, ref_BK, **weights)
    torch.testing.assert_close(difference, custom_B - cpo_B)
