import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from cpo_ray.config import AdapterConfig
from cpo_ray.errors import TrainingError
from cpo_ray.objective.adapters import LoraSettings, add_adapter, merged_weights, save_adapter
from cpo_ray.objective.pretrained import load_model
from cpo_ray.training.adapter_merging import whole_models
from cpo_ray.training.models import export_without_weights
from cpo_ray.training.policy_files import write_policy
from tests.training.world import make_task


@pytest.fixture
def adapter_alone(world, tmp_path):
    """A directory with an adapter of the tied model, in place of its weights; and the model with that adapter."""
    model = load_model(world / "tied", "fp32")
    add_adapter(model, LoraSettings(rank=2, alpha=4.0), seed=1)
    for name, weight in model.named_parameters():
        if ".lora_B." in name:
            weight.data.fill_(0.1)
    task = make_task(world, adapter=AdapterConfig(rank=2, alpha=4.0, export="adapter"))
    write_policy(model, None, task, tmp_path / "alone")
    return tmp_path / "alone", model


def test_adapters_are_merged_while_they_are_served(world, adapter_alone, tmp_path):
    (folder, model), lines = adapter_alone, []
    models = {"mle": world / "tied", "cpo": folder}
    with whole_models(models, tmp_path / "scratch", lines.append) as whole:
        assert lines == ["merging cpo into their base, to serve them"]
        assert whole["mle"] == world / "tied"
        served = AutoModelForCausalLM.from_pretrained(whole["cpo"])
        assert served.lm_head.weight is served.model.embed_tokens.weight
        tokens = torch.arange(1, 30)[None]
        with torch.no_grad():
            assert (served(tokens).logits - model(tokens).logits).abs().max() < 1e-5
        stored, merged = load_file(whole["cpo"] / "model.safetensors"), merged_weights(model).tensors
        assert all(torch.equal(stored[name], merged[name]) for name in stored)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_whole_models_are_served_as_they_are(world, tmp_path):
    models = {"a": world / "tied", "b": world / "untied"}
    with whole_models(models, tmp_path / "scratch", pytest.fail) as whole:
        assert whole == models
    assert not (tmp_path / "scratch").exists()


def test_an_adapter_whose_base_is_gone_names_it(world, tmp_path):
    model = load_model(world / "tied", "fp32")
    add_adapter(model, LoraSettings(rank=2, alpha=4.0), seed=1)
    export_without_weights(model, world / "tied", tmp_path / "alone")
    save_adapter(model, "/no/such/base", tmp_path / "alone" / "adapter")
    with (
        pytest.raises(TrainingError, match=r"cannot load the model /no/such/base"),
        whole_models({"x": tmp_path / "alone"}, tmp_path / "scratch", str),
    ):
        pass
