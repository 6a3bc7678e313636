"""Where Ray Train is asked to place the workers."""

import pytest
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer

from cpo_ray.config import ClusterConfig
from cpo_ray.errors import TrainingError
from cpo_ray.training import trainer
from tests.training.runs import train

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("cluster")]


@pytest.mark.parametrize("placement", ["PACK", "SPREAD"])
def test_workers_are_placed_as_configured(world, tmp_path, monkeypatch, placement):
    options_seen = {}
    monkeypatch.setattr(
        trainer, "ScalingConfig", lambda **options: options_seen.update(options) or ScalingConfig(**options)
    )
    monkeypatch.setattr(TorchTrainer, "fit", lambda _: (_ for _ in ()).throw(TrainingError("seen")))
    with pytest.raises(TrainingError, match="seen"):
        train(world, ClusterConfig(local_cpus=4, placement=placement), tmp_path / "model")
    assert options_seen["placement_strategy"] == placement
