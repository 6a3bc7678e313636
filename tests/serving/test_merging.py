import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from cpo_ray.errors import ArtifactError
from cpo_ray.serving.merging import INDEX, WEIGHTS, interpolate, merge_models
from tests.serving.tiny_llama import write_tiny_llama


def read_weights(model: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(model.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def save_weights(model: Path, weights: dict[str, torch.Tensor]) -> None:
    save_file(weights, model / WEIGHTS, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("models")
    return write_tiny_llama(root / "mle", seed=1), write_tiny_llama(root / "cpo", seed=2)


@pytest.fixture
def pair(inputs: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    return tuple(shutil.copytree(model, tmp_path / model.name) for model in inputs)  # type: ignore[return-value]


def test_alpha_one_and_zero_give_the_inputs_bit_for_bit(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    mle, cpo = inputs
    merge_models(mle, cpo, 1.0, tmp_path / "one")
    merge_models(mle, cpo, 0.0, tmp_path / "zero")
    assert (tmp_path / "one" / WEIGHTS).read_bytes() == (mle / WEIGHTS).read_bytes()
    assert (tmp_path / "zero" / WEIGHTS).read_bytes() == (cpo / WEIGHTS).read_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_between_it_is_the_float32_interpolation(pair: tuple[Path, Path], tmp_path: Path, dtype: torch.dtype) -> None:
    for model in pair:
        save_weights(model, {name: tensor.to(dtype) for name, tensor in read_weights(model).items()})
    mle, cpo = (read_weights(model) for model in pair)
    merge_models(*pair, 0.3, tmp_path / "out")
    for name, tensor in read_weights(tmp_path / "out").items():
        assert tensor.dtype == dtype
        exact = 0.3 * mle[name].double() + 0.7 * cpo[name].double()
        # rounding once to float32 and once to the stored dtype: within one unit in the last place
        ulp = torch.finfo(dtype).eps * exact.abs() + torch.finfo(torch.float32).eps
        assert ((tensor.double() - exact).abs() <= ulp).all()


def test_a_merged_model_loads_stays_tied_and_lacks_the_manifest(pair: tuple[Path, Path], tmp_path: Path) -> None:
    mle, cpo = pair
    (cpo / "manifest.json").write_text("{}")
    (cpo / "pytorch_model.bin").write_bytes(b"stale weights")
    summary = merge_models(mle, cpo, 0.5, tmp_path / "out")
    weights = read_weights(cpo)
    assert "lm_head.weight" not in weights
    assert summary == {
        "alpha": 0.5,
        "tensors": len(weights),
        "parameters": sum(tensor.numel() for tensor in weights.values()),
        "shards": 1,
    }
    names = {path.name for path in cpo.iterdir()} - {"manifest.json", "pytorch_model.bin"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token_id == 0


def test_shards_and_index_are_kept(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    whole = write_tiny_llama(tmp_path / "mle", seed=3, tie_embeddings=False)
    sharded = write_tiny_llama(tmp_path / "cpo", seed=4, tie_embeddings=False, shard_size="1MB")
    summary = merge_models(whole, sharded, 0.5, tmp_path / "out")
    assert summary["shards"] == len(list(sharded.glob("*.safetensors"))) > 1
    assert (tmp_path / "out" / INDEX).read_bytes() == (sharded / INDEX).read_bytes()
    left, right, merged = read_weights(whole), read_weights(sharded), read_weights(tmp_path / "out")
    assert merged.keys() == right.keys()
    assert all(torch.equal(merged[name], 0.5 * left[name] + 0.5 * right[name]) for name in merged)
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_the_first_ten_differences_are_listed(pair: tuple[Path, Path], tmp_path: Path) -> None:
    mle, cpo = pair
    weights = read_weights(cpo)
    for index, name in enumerate(sorted(weights)[:12]):
        weights[name] = weights[name].half() if index % 2 else weights[name][:-1].clone()
    weights["extra.weight"] = torch.zeros(2)
    save_weights(cpo, weights)
    with pytest.raises(ArtifactError) as caught:
        merge_models(mle, cpo, 0.5, tmp_path / "out")
    headline, *lines = str(caught.value).splitlines()
    assert "13 differences, the first 10" in headline
    assert len(lines) == 10
    assert lines[0] == f"  extra.weight: only in {cpo}"
    assert lines[1] == f"  model.embed_tokens.weight: shape [1024, 160] in {mle}, [1023, 160] in {cpo}"
    assert "dtype F32" in lines[2]
    assert not (tmp_path / "out").exists()


def test_other_tokenizers_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    mle, cpo = pair
    settings = json.loads((cpo / "tokenizer_config.json").read_text())
    (cpo / "tokenizer_config.json").write_text(json.dumps(settings | {"name_or_path": "elsewhere"}))
    merge_models(mle, cpo, 0.5, tmp_path / "out")
    (cpo / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "</s>"}))
    with pytest.raises(ArtifactError, match=r"tokenizer_config.json: 'eos_token' differs"):
        merge_models(mle, cpo, 0.5, tmp_path / "out2")
    (cpo / "tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match=r"tokenizer.json only in"):
        merge_models(mle, cpo, 0.5, tmp_path / "out2")


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_nan_is_refused(pair: tuple[Path, Path], tmp_path: Path, which: int, alpha: float) -> None:
    weights = read_weights(pair[which])
    weights["model.norm.weight"][3] = float("nan")
    save_weights(pair[which], weights)
    with pytest.raises(ArtifactError, match=rf"model.norm.weight: the {('MLE', 'CPO')[which]} model holds NaN"):
        merge_models(*pair, alpha, tmp_path / "out")
    assert not (tmp_path / "out" / WEIGHTS).exists()


def test_an_input_is_never_overwritten(pair: tuple[Path, Path]) -> None:
    mle, cpo = pair
    for out in (mle, cpo, cpo.parent / "mle" / ".." / "cpo"):
        with pytest.raises(ArtifactError, match="would overwrite its input"):
            merge_models(mle, cpo, 0.5, out)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_out_of_bounds_is_refused(pair: tuple[Path, Path], tmp_path: Path, alpha: float) -> None:
    with pytest.raises(ArtifactError, match="outside"):
        merge_models(*pair, alpha, tmp_path / "out")


def test_a_damaged_model_is_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    mle, cpo = pair
    (cpo / WEIGHTS).unlink()
    with pytest.raises(ArtifactError, match="only safetensors models"):
        merge_models(mle, cpo, 0.5, tmp_path / "out")
    (cpo / INDEX).write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(ArtifactError, match=r"names gone.safetensors"):
        merge_models(mle, cpo, 0.5, tmp_path / "out")


def test_integers_must_agree() -> None:
    ones = torch.ones(3, dtype=torch.int64)
    assert interpolate(ones, ones.clone(), 0.3, "steps") is not None
    with pytest.raises(ArtifactError, match=r"steps: torch.int64"):
        interpolate(ones, ones * 2, 0.3, "steps")


def test_a_card_is_not_taken_over(pair: tuple[Path, Path], tmp_path: Path) -> None:
    mle, cpo = pair
    (cpo / "README.md").write_text("tells of the CPO model")
    merge_models(mle, cpo, 0.5, tmp_path / "out")
    assert not (tmp_path / "out" / "README.md").exists()
