import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cpo_ray.errors import ArtifactError
from cpo_ray.records import ADAPTER, ADAPTER_CONFIG, ADAPTER_WEIGHTS
from cpo_ray.serving.merging import average_models, files_read, merge_models
from tests.serving.tiny_llama import write_tiny_llama

LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


def write_adapter(model: Path, seed: int, rank: int, alpha: float, **config: object) -> Path:
    """A tiny model's directory with an adapter of one layer, from 4 to 6 numbers, in place of its weights."""
    write_tiny_llama(model, seed=seed)
    (model / "model.safetensors").unlink()
    (model / ADAPTER).mkdir()
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"{LAYER}.lora_A.weight": torch.randn(rank, 4, generator=generator),
        f"{LAYER}.lora_B.weight": torch.randn(6, rank, generator=generator),
    }
    save_file(tensors, model / ADAPTER / ADAPTER_WEIGHTS)
    described = {"base_model_name_or_path": "base", "target_modules": ["q_proj"], "r": rank, "lora_alpha": alpha}
    (model / ADAPTER / ADAPTER_CONFIG).write_text(json.dumps(described | config))
    return model


def change(model: Path) -> torch.Tensor:
    """(alpha / rank) B A of the only layer, float64."""
    tensors = load_file(model / ADAPTER / ADAPTER_WEIGHTS)
    config = json.loads((model / ADAPTER / ADAPTER_CONFIG).read_text())
    first, second = (tensors[f"{LAYER}.lora_{part}.weight"].double() for part in "AB")
    return config["lora_alpha"] / config["r"] * second @ first


@pytest.fixture
def adapters(tmp_path: Path) -> tuple[Path, Path]:
    return write_adapter(tmp_path / "mle", 1, rank=2, alpha=6.0), write_adapter(tmp_path / "cpo", 2, rank=3, alpha=3.0)


@pytest.mark.parametrize(("alpha", "rank"), [(0.3, 5), (1.0, 2), (0.0, 3)])
def test_the_mean_of_adapters_is_the_mean_of_their_changes(adapters, tmp_path, alpha, rank):
    mle, cpo = adapters
    summary = merge_models(mle, cpo, alpha, tmp_path / "out")
    assert summary == {"alpha": alpha, "tensors": 2, "parameters": rank * (4 + 6), "rank": rank}
    exact = alpha * change(mle) + (1 - alpha) * change(cpo)
    assert (change(tmp_path / "out") - exact).abs().max() < 1e-5
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in cpo.iterdir()}


def test_what_a_merge_reads_includes_the_adapter(adapters):
    names = {file.relative_to(adapters[0]).as_posix() for file in files_read(adapters[0])}
    assert {f"{ADAPTER}/{ADAPTER_WEIGHTS}", f"{ADAPTER}/{ADAPTER_CONFIG}", "config.json"} <= names


def test_adapters_that_do_not_fit_are_refused(adapters, tmp_path):
    mle, cpo = adapters
    elsewhere = write_adapter(tmp_path / "elsewhere", 3, rank=2, alpha=2.0, base_model_name_or_path="another")
    with pytest.raises(ArtifactError, match=r"base_model_name_or_path: 'another' in .*elsewhere, 'base' in .*cpo"):
        merge_models(elsewhere, cpo, 0.5, tmp_path / "out")
    whole = tmp_path / "whole"
    write_tiny_llama(whole, seed=4)
    with pytest.raises(ArtifactError, match=r"mle is an adapter .* and .*whole a whole model.*adapter\.export"):
        merge_models(mle, whole, 0.5, tmp_path / "out")
    with pytest.raises(ArtifactError, match="--dtype bfloat16 is for whole models"):
        average_models([(mle, 0.5), (cpo, 0.5)], tmp_path / "out", dtype="bfloat16")
    tensors = load_file(mle / ADAPTER / ADAPTER_WEIGHTS)
    save_file({name: tensor * torch.nan for name, tensor in tensors.items()}, mle / ADAPTER / ADAPTER_WEIGHTS)
    with pytest.raises(ArtifactError, match="holds NaN or infinite weights"):
        merge_models(mle, cpo, 0.0, tmp_path / "out")
    assert not (tmp_path / "out").exists()
