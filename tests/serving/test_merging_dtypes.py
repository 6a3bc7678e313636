"""Models of different dtypes."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from cpo_ray.errors import ArtifactError
from cpo_ray.inference.weight_files import INDEX
from cpo_ray.serving.merging import merge_models
from tests.serving.merge_inputs import read_weights, save_weights
from tests.serving.tiny_llama import write_tiny_llama

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def store_as(model: Path, dtype: str) -> dict[str, torch.Tensor]:
    """Store the model's weights in another dtype, with two integers; return them."""
    weights: dict[str, torch.Tensor] = {name: tensor.to(DTYPES[dtype]) for name, tensor in read_weights(model).items()}
    save_weights(model, weights | {"steps": torch.tensor([3, 4], dtype=torch.int32)})
    description = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(description | {"dtype": dtype}))
    return weights


def test_different_dtypes_are_refused_with_the_option_that_merges_them(pair: tuple[Path, Path], tmp_path: Path) -> None:
    store_as(pair[0], "float32")
    store_as(pair[1], "bfloat16")
    with pytest.raises(ArtifactError, match=r"(?s)dtype F32 in .*, BF16 in .*--dtype bfloat16"):
        merge_models(*pair, 0.5, tmp_path / "out")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_a_chosen_dtype_merges_models_of_different_dtypes(
    pair: tuple[Path, Path], tmp_path: Path, dtype: str, alpha: float
) -> None:
    mle, cpo = store_as(pair[0], "float32"), store_as(pair[1], "bfloat16")
    assert merge_models(*pair, alpha, tmp_path / "out", dtype)["dtype"] == dtype
    merged = read_weights(tmp_path / "out")
    assert merged.pop("steps").tolist() == [3, 4]
    assert merged.keys() == cpo.keys()
    for name, tensor in merged.items():
        if alpha in (0.0, 1.0):
            exact = (mle if alpha else cpo)[name].float()
        else:
            exact = (1 - alpha) * cpo[name].float() + alpha * mle[name].float()
        assert torch.equal(tensor, exact.to(DTYPES[dtype])), name
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.dtype == DTYPES[dtype]


def test_a_chosen_dtype_is_in_the_index_and_under_the_old_key(tmp_path: Path) -> None:
    models = [write_tiny_llama(tmp_path / str(seed), seed=seed, shard_size="1MB") for seed in (1, 2)]
    description = json.loads((models[1] / "config.json").read_text())
    description["torch_dtype"] = description.pop("dtype")
    (models[1] / "config.json").write_text(json.dumps(description))
    merge_models(*models, 0.5, tmp_path / "out", "bfloat16")
    before, after = (json.loads((model / INDEX).read_text()) for model in (models[1], tmp_path / "out"))
    assert after["weight_map"] == before["weight_map"]
    assert 2 * after["metadata"]["total_size"] == before["metadata"]["total_size"]
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["torch_dtype"], "dtype" in written) == ("bfloat16", False)


def test_a_value_that_the_dtype_cannot_hold_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    for model in pair:
        save_weights(model, {"w": torch.tensor([1.0, 70000.0])})
    with pytest.raises(ArtifactError, match=r"w: .* too large for float16; choose bfloat16 or float32"):
        merge_models(*pair, 0.5, tmp_path / "out", "float16")
    merge_models(*pair, 0.5, tmp_path / "out", "bfloat16")
