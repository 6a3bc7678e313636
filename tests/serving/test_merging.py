import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cpo_ray.errors import ArtifactError
from cpo_ray.inference.weight_files import INDEX, WEIGHTS
from cpo_ray.serving.merging import average_models, merge_models
from cpo_ray.serving.safetensors_files import BLOCK_NUMBERS
from tests.serving.merge_inputs import read_weights, save_weights
from tests.serving.tiny_llama import write_tiny_llama


def test_alpha_one_and_zero_give_the_inputs_bit_for_bit(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    mle, cpo = inputs
    merge_models(mle, cpo, 1.0, tmp_path / "one")
    merge_models(mle, cpo, 0.0, tmp_path / "zero")
    assert (tmp_path / "one" / WEIGHTS).read_bytes() == (mle / WEIGHTS).read_bytes()
    assert (tmp_path / "zero" / WEIGHTS).read_bytes() == (cpo / WEIGHTS).read_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_alphas_give_the_float32_interpolation(
    pair: tuple[Path, Path], tmp_path: Path, dtype: torch.dtype
) -> None:
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


def test_a_merged_model_loads_stays_tied_and_has_no_manifest(pair: tuple[Path, Path], tmp_path: Path) -> None:
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


def test_different_tokenizers_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    mle, cpo = pair
    settings = json.loads((cpo / "tokenizer_config.json").read_text())
    (cpo / "tokenizer_config.json").write_text(json.dumps(settings | {"name_or_path": "elsewhere"}))
    merge_models(mle, cpo, 0.5, tmp_path / "out")
    (cpo / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "</s>"}))
    with pytest.raises(
        ArtifactError, match=r"tokenizer: eos_token is '<\|endoftext\|>' \(id 0\) in .*'</s>' \(id 1024"
    ):
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
    with pytest.raises(ArtifactError, match=rf"model.norm.weight: {pair[which]}/{WEIGHTS} holds NaN"):
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
    whole = (cpo / WEIGHTS).read_bytes()
    (cpo / WEIGHTS).write_bytes(whole[:-5])
    with pytest.raises(ArtifactError, match="not a complete safetensors file"):
        merge_models(mle, cpo, 0.5, tmp_path / "out")
    (cpo / WEIGHTS).unlink()
    with pytest.raises(ArtifactError, match="only safetensors models"):
        merge_models(mle, cpo, 0.5, tmp_path / "out")
    for index, complaint in (
        ({"weight_map": {"a": "gone.safetensors"}}, r"gone.safetensors is missing"),
        ({"weight_map": {"a": "../mle/model.safetensors"}}, r"which is not beside it"),
        ({"weight_map": {"a": 3}}, r"which is not beside it"),
        ([], r"is not an index"),
    ):
        (cpo / INDEX).write_text(json.dumps(index))
        with pytest.raises(ArtifactError, match=complaint):
            merge_models(mle, cpo, 0.5, tmp_path / "out")
    (cpo / WEIGHTS).write_bytes(whole)
    (cpo / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": WEIGHTS}}))
    with pytest.raises(ArtifactError, match="does not match the safetensors files"):
        merge_models(mle, cpo, 0.5, tmp_path / "out")


def test_a_second_set_of_weights_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """transformers would load model.safetensors, vLLM the shards."""
    sharded = write_tiny_llama(tmp_path / "sharded", seed=4, shard_size="1MB")
    zeros = {name: torch.zeros_like(tensor) for name, tensor in read_weights(sharded).items()}
    save_weights(sharded, zeros)
    with pytest.raises(ArtifactError, match=rf"sharded holds two sets of weights: {WEIGHTS}.*{INDEX}"):
        merge_models(pair[0], sharded, 0.5, tmp_path / "out")
    (pair[1] / "model-00001-of-00002.safetensors").write_bytes((pair[1] / WEIGHTS).read_bytes())
    with pytest.raises(ArtifactError, match=r"model-00001-of-00002.safetensors"):
        merge_models(*pair, 0.5, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_card_is_not_copied(pair: tuple[Path, Path], tmp_path: Path) -> None:
    mle, cpo = pair
    (cpo / "README.md").write_text("describes the CPO model")
    merge_models(mle, cpo, 0.5, tmp_path / "out")
    assert not (tmp_path / "out" / "README.md").exists()


def test_different_configs_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    mle, cpo = pair
    description = json.loads((cpo / "config.json").read_text())
    (cpo / "config.json").write_text(json.dumps(description | {"num_attention_heads": 10, "transformers_version": "0"}))
    with pytest.raises(ArtifactError, match=r"1 difference:\n  config: 'num_attention_heads' differs: 5 .*10"):
        merge_models(mle, cpo, 0.5, tmp_path / "out")


def test_integer_tensors_must_be_equal(pair: tuple[Path, Path], tmp_path: Path) -> None:
    for step, model in enumerate(pair):
        save_weights(model, read_weights(model) | {"steps": torch.tensor([7, 7 + step])})
    with pytest.raises(ArtifactError, match=r"steps: torch.int64 tensors cannot be averaged"):
        merge_models(*pair, 0.5, tmp_path / "out")
    save_weights(pair[1], read_weights(pair[1]) | {"steps": torch.tensor([7, 7])})
    merge_models(*pair, 0.5, tmp_path / "out")
    assert read_weights(tmp_path / "out")["steps"].tolist() == [7, 7]


def ulps_apart(left: torch.Tensor, right: torch.Tensor) -> int:
    """The largest distance between two float tensors, in units in the last place."""
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[left.dtype.itemsize]
    ordered = []
    for tensor in (left, right):
        bits = tensor.contiguous().view(width).long()
        ordered.append(torch.where(bits < 0, torch.iinfo(width).min - bits, bits))
    return int((ordered[0] - ordered[1]).abs().max())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_at_one_half_it_equals_an_independent_mean_to_one_ulp(
    pair: tuple[Path, Path], tmp_path: Path, dtype: torch.dtype
) -> None:
    draw = torch.Generator().manual_seed(5)
    for model in pair:
        edges = torch.randn(2 * BLOCK_NUMBERS + 3, generator=draw, dtype=torch.float64)  # more than one block
        save_weights(
            model,
            {"w": edges.to(dtype, copy=True), "empty": torch.zeros(0, dtype=dtype), "one": edges[:1].to(dtype).clone()},
        )
    mle, cpo = (read_weights(model) for model in pair)
    merge_models(*pair, 0.5, tmp_path / "out")
    merged = read_weights(tmp_path / "out")
    for name in ("w", "one"):
        exact = (mle[name].double().numpy() + cpo[name].double().numpy()) / 2
        assert ulps_apart(merged[name], torch.from_numpy(exact).to(dtype)) <= 1
    assert merged["empty"].shape == (0,)


def test_any_number_of_models_with_weights(pair: tuple[Path, Path], tmp_path: Path) -> None:
    third = write_tiny_llama(tmp_path / "third", seed=9)
    models = [*pair, third]
    average_models(list(zip(models, (0.2, 0.7, 0.1), strict=True)), tmp_path / "out")
    stored = [read_weights(model) for model in models]
    for name, tensor in read_weights(tmp_path / "out").items():
        exact = 0.2 * stored[0][name].double() + 0.7 * stored[1][name].double() + 0.1 * stored[2][name].double()
        torch.testing.assert_close(tensor.double(), exact, rtol=1e-6, atol=1e-7)
    average_models([(pair[0], 0), (pair[1], 0), (third, 1)], tmp_path / "whole")
    assert (tmp_path / "whole" / WEIGHTS).read_bytes() == (third / WEIGHTS).read_bytes()


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [((0.5, 0.6), r"0.5 \+ 0.6 = 1.1"), ((1.5, -0.5), "-0.5 of"), ((float("nan"), 1), "nan of"), ((1,), "two models")],
)
def test_weights_that_do_not_sum_to_one_are_refused(
    pair: tuple[Path, Path], tmp_path: Path, weights: tuple[float, ...], complaint: str
) -> None:
    with pytest.raises(ArtifactError, match=complaint):
        average_models(list(zip(pair, weights, strict=False)), tmp_path / "out")


@pytest.mark.e2e
def test_memory_does_not_grow_with_the_model(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    numbers = 16 * 2**20  # 64 MiB in float32
    models = []
    for model in inputs:
        models.append(shutil.copytree(model, tmp_path / model.name))
        save_weights(models[-1], {"w": torch.ones(numbers)})
    code = f"""
import resource, sys
from pathlib import Path
from cpo_ray.serving.merging import merge_models
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
merge_models(Path({str(models[0])!r}), Path({str(models[1])!r}), 0.5, Path({str(tmp_path / "out")!r}))
print(peak() - before)
"""
    seen = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(seen.stdout) < 4 * numbers  # far below the bound of three times the largest tensor
