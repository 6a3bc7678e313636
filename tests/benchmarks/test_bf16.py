"""The benchmark on small models: the scorer's and the trainer's code in bf16, from weights to the decision."""

import pytest
import torch

from benchmarks.bf16 import gradient_share, one_seed, results
from benchmarks.bf16_groups import FAULTS, SCALE, make_model, read_texts
from cpo_ray.objective.attention import use_tree_attention


@pytest.fixture(scope="module")
def texts():
    return read_texts()


@pytest.fixture(scope="module")
def seeds(texts):
    return [one_seed(seed, texts, lambda seed: make_model(seed, 2, 64, SCALE), 5.0) for seed in range(2)]


def test_honest_scores_pass_and_those_of_another_reference_are_refused(seeds):
    for found in seeds:
        assert found["honest"].passes
        assert found["honest"].noise is not None
        assert not any(found[name].passes for name in FAULTS)


@pytest.mark.gpu
def test_the_same_on_a_gpu_with_26_layers(texts):
    def make(seed):
        model = make_model(seed, 26, 128, SCALE).cuda()
        use_tree_attention(model)
        return model

    for found in (one_seed(seed, texts, make, 5.0) for seed in range(5)):
        assert found["honest"].passes
        assert found["honest"].drift <= 2 * max(found["honest"].noise, 0.02)
        assert not any(found[name].passes for name in FAULTS)


def test_the_share_of_beta_that_noise_leaves_in_the_gradient():
    generator = torch.Generator().manual_seed(0)
    for nats, low, high in ((0.0, 0.99, 1.01), (0.02, 0.98, 1.01), (0.3, 0.3, 0.8)):
        drift = torch.randn(400, 12, generator=generator) * nats
        assert low < gradient_share([drift], 5.0) < high


def test_the_ratios_are_shares_of_the_seeds(seeds):
    ratios, more = results(seeds, 5.0)
    assert ratios["honest_pass"]["value"] == 1
    assert ratios["weights_refused"] == ratios["weights_refused"] | {"value": 1.0, "pairs": 2, "holds": True}
    assert more["drift_nat"]["candidates"] == 2 * 8 * 12
