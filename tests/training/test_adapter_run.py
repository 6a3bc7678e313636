"""An adapter's training from the driver's side: real Ray Train, merged weights at the end."""

import pytest
import torch
from safetensors.torch import load_file

from cpo_ray.config import AdapterConfig
from cpo_ray.objective.pretrained import load_adapted, load_model
from tests.training.runs import checkpoints, train

pytestmark = pytest.mark.e2e


def test_checkpoints_hold_adapters_and_the_model_is_merged(world, cluster, tmp_path):
    """The best of two checkpoints, on one worker."""
    out, notices = tmp_path / "model", []
    settings = {"validation": world / "groups-tied", "validation_rows": 8, "final": "best"}
    adapter, schedule = AdapterConfig(rank=4, alpha=8.0), {"steps": 4, "checkpoint_every": 2}
    losses = train(world, cluster, out, notices=notices, adapter=adapter, workers=1, **schedule, **settings)
    assert len(losses) == 4
    assert ["4,352 parameters are trained" in notice for notice in notices] == [True]
    kept = checkpoints(out)
    assert set(kept) == {2, 4}
    for folder in kept.values():
        assert not list((folder / "model").glob("*.safetensors"))
    stored = [load_file(folder / "model/adapter/adapter_model.safetensors") for folder in kept.values()]
    final = load_file(out / "adapter" / "adapter_model.safetensors")
    assert any(all(torch.equal(final[name], each[name]) for name in final) for each in stored)
    tokens = torch.arange(1, 40)[None]
    with torch.no_grad():
        applied, merged = (load(out, "fp32")(tokens).logits for load in (load_adapted, load_model))
    assert (applied - merged).abs().max() < 1e-5
