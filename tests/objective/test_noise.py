import math

import pytest
import torch

from cpo_ray.objective.losses import cpo_loss
from cpo_ray.objective.noise import beta_share, loss_rise, score_variance, scoring_noise


def test_noise_is_the_root_mean_square_per_sqrt_token_of_the_measured_groups():
    candidates = [[[1] * 4, [1] * 9], [[1], [1]], [[1] * 16, [1]]]
    assert scoring_noise([[0.2, -0.6], None, [0.0, 0.1]], candidates) == pytest.approx(
        math.sqrt((0.01 + 0.04 + 0 + 0.01) / 4)
    )
    assert scoring_noise([None, None, None], candidates) is None
    assert scoring_noise([], []) is None


def test_the_variance_is_within_groups_and_over_valid_candidates():
    scores = torch.tensor([[1.0, 3.0, 100.0], [7.0, 7.0, 7.0], [5.0, 9.0, 9.0]])
    valid = torch.tensor([[True, True, False], [True, True, True], [True, False, False]])
    assert score_variance(scores, valid).tolist() == [2.0, 0.0, 0.0]


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0])
def test_the_predicted_rise_of_the_loss_is_that_of_random_noise(sigma):
    """The loss that is simulated is the real one, with no true difference between policy and reference."""
    noise = torch.randn(20_000, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * sigma
    ranks = torch.arange(12).expand(len(noise), 12)
    for ranked, start in ((True, math.lgamma(13)), (False, math.log(12))):
        loss = cpo_loss(noise, torch.zeros_like(noise), 1.0, ranks if ranked else None).mean().item()
        assert loss_rise(sigma**2, 12, ranked=ranked) == pytest.approx(loss - start, rel=0.12)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0])
def test_noise_acts_on_the_mean_preference_as_a_smaller_beta(sigma):
    gaps = torch.linspace(-4, 4, 9, dtype=torch.float64)
    noise = torch.randn(100_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * sigma
    mean = torch.sigmoid(gaps + noise[:, :1] - noise[:, 1:]).mean(dim=0)
    assert mean.tolist() == pytest.approx(torch.sigmoid(gaps * beta_share(sigma**2)).tolist(), abs=0.01)
    assert beta_share(0.0) == 1.0
