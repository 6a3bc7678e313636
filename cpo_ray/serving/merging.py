"""The weight-space ensemble theta = alpha * theta_MLE + (1 - alpha) * theta_CPO, and weighted means of any models."""

import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from cpo_ray.artifacts import MANIFEST, Summary, write_atomically, write_json
from cpo_ray.artifacts.adapter_files import is_adapter_alone
from cpo_ray.errors import ArtifactError
from cpo_ray.inference.weight_files import INDEX
from cpo_ray.records import ADAPTER
from cpo_ray.serving.adapter_averaging import average_adapters
from cpo_ray.serving.comparison import CONFIG, Differences, read_object
from cpo_ray.serving.compatibility import check_compatible
from cpo_ray.serving.safetensors_files import (
    FLOATS,
    StoredTensor,
    WeightShard,
    convert_header,
    read_shards,
    read_tensors,
)

CARD = "README.md"  # describes the input model, not the merged one
SAFETENSORS = ".safetensors"
OTHER_WEIGHTS = {".bin", ".pt", ".pth", ".h5", ".msgpack"}
DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}  # of --dtype -> safetensors' names
DTYPE_REMEDY = "Models of different dtypes are merged in one of your choice: --dtype bfloat16, float16 or float32."
WEIGHTS_TOLERANCE = 1e-6  # of their sum: 0.1 + 0.2 + 0.7 is not 1 in binary


def merge_models(mle: Path, cpo: Path, alpha: float, out: Path, dtype: str | None = None) -> Summary:
    """Write the Hugging Face directory `out` with theta = alpha * MLE + (1 - alpha) * CPO (the paper, "Weight-space ensemble").

    Same as `average_models` with two models: `alpha` 1 and 0 copy the weights of `mle` and `cpo` bit for bit; shards,
    index, config and tokenizer are those of `cpo`. Returns {"alpha"} and what `average_models` returns.

    Raises ArtifactError if alpha is outside [0, 1], and as `average_models`.
    """
    if not 0 <= alpha <= 1:
        raise ArtifactError(f"alpha {alpha} is outside [0, 1]")
    return {"alpha": alpha, **average_models([(cpo, 1 - alpha), (mle, alpha)], out, dtype)}


def average_models(models: Sequence[tuple[Path, float]], out: Path, dtype: str | None = None) -> Summary:
    """Write the Hugging Face directory `out` with the mean of `models`: (directory, weight), weights that sum to 1.

    Arithmetic is in float32 (float64 for stored float64), rounded once to the stored dtype. A model with weight 1 is copied
    bit for bit. Tensors are streamed in blocks, so memory does not grow with the models. Tied weights are stored as in the
    first model. Shards, index, config and tokenizer are those of the first model. Each file is written atomically.

    `dtype`, a key of DTYPES, merges models of any floating-point dtypes: arithmetic in float32, rounded once to `dtype`; then
    also a model with weight 1 is rounded, and config and index follow.

    Models that are adapters without merged weights give such an adapter: see `adapter_averaging`.

    Returns {"tensors", "parameters", "shards"}, "dtype" if it was given, and "change_nothing" if there are such differences
    between the models: texts about files that differ and give the same tokens and numbers.

    Raises ArtifactError for fewer than two models, weights that are negative or do not sum to 1, an `out` that is an input,
    different tokenizers, configs, keys, shapes or dtypes (lists the first ten differences), two sets of weights in one
    directory, different integer tensors, tensors with values that are not finite, even in a model with weight 0, and values too
    large for `dtype`.
    """
    _check_weights(models)
    folders, weights = [folder for folder, _ in models], [weight for _, weight in models]
    if out.resolve() in {folder.resolve() for folder in folders}:
        raise ArtifactError(f"the merged model would overwrite its input {out}; choose another directory")
    if any(alone := [is_adapter_alone(folder) for folder in folders]):
        return _average_adapters(models, alone, out, dtype)
    template, *others = folders
    shards = read_shards(template)
    differences = Differences()
    for other in others:
        differences.add(check_compatible(other, template, "be merged", dtype is not None, DTYPE_REMEDY))
    tensors = [_with_copies(read_tensors(folder), differences.copies) for folder in folders]

    out.mkdir(parents=True, exist_ok=True)
    for name, shard in shards.items():
        _average_shard(shard, tensors, weights, out / name, dtype)
    _copy_other_files(template, out)
    if dtype is not None:
        _rewrite_dtype(out, dtype)
    stored = [tensor for shard in shards.values() for tensor in shard.tensors.values()]
    summary: Summary = {"tensors": len(stored), "parameters": sum(each.numel for each in stored), "shards": len(shards)}
    if dtype is not None:
        summary["dtype"] = dtype
    if differences.change_nothing:
        summary["change_nothing"] = list(dict.fromkeys(differences.change_nothing))
    return summary


def files_read(model: Path) -> list[Path]:
    """The files of a model directory that a merge reads: no manifest, no model card, only safetensors weights or an adapter."""
    adapter = sorted((model / ADAPTER).iterdir()) if is_adapter_alone(model) else []
    return [
        file
        for file in [*sorted(model.iterdir()), *adapter]
        if file.is_file()
        and file.suffix not in OTHER_WEIGHTS
        and file.name not in (MANIFEST, CARD)
        and not file.name.startswith(".")
    ]


def average_tensor(
    name: str, stored: Sequence[StoredTensor], weights: Sequence[float], dtype: torch.dtype | None = None
) -> Iterator[torch.Tensor]:
    """Yield sum_i weights[i] * stored[i] as flat blocks in `dtype`, by default the stored dtype. All have the same shape.

    Raises ArtifactError with the tensor's name if a value is not finite, or not in `dtype`, or if integers differ.
    """
    for blocks in zip(*(tensor.blocks() for tensor in stored), strict=True):
        if not blocks[0].dtype.is_floating_point:
            if any(not torch.equal(blocks[0], block) for block in blocks[1:]):
                raise ArtifactError(
                    f"{name}: {blocks[0].dtype} tensors cannot be averaged, and the models' values differ"
                )
            yield blocks[0]
            continue
        target = dtype or blocks[0].dtype
        wide = [block.to(torch.float64 if target == torch.float64 else torch.float32) for block in blocks]
        for tensor, block in zip(stored, wide, strict=True):
            if not torch.isfinite(block).all():
                raise ArtifactError(f"{name}: {tensor.file} holds NaN or infinite weights")
        if 1 in weights:
            chosen = weights.index(1)
            averaged = blocks[chosen] if blocks[chosen].dtype == target else wide[chosen].to(target)
        else:
            averaged = sum(weight * block for weight, block in zip(weights, wide, strict=True)).to(target)
        if dtype is not None and not torch.isfinite(averaged).all():
            raise ArtifactError(f"{name}: a weight is too large for float16; choose bfloat16 or float32")
        yield averaged


def _average_adapters(
    models: Sequence[tuple[Path, float]], alone: Sequence[bool], out: Path, dtype: str | None
) -> Summary:
    """The mean of models that are adapters without merged weights, in the same form."""
    if not all(alone):
        whole, adapter = (models[alone.index(kind)][0] for kind in (False, True))
        raise ArtifactError(
            f"{adapter} is an adapter without its base's weights, and {whole} a whole model, so they cannot be merged: write "
            "both with one adapter.export, merged or adapter"
        )
    if dtype is not None:
        raise ArtifactError(f"--dtype {dtype} is for whole models: the mean of adapters has float32 values")
    summary = average_adapters(models, out)
    _copy_other_files(models[0][0], out)
    return summary


def _check_weights(models: Sequence[tuple[Path, float]]) -> None:
    if len(models) < 2:
        raise ArtifactError(f"a merge needs two models or more, got {len(models)}")
    listed = " + ".join(f"{weight:g}" for _, weight in models)
    for folder, weight in models:
        if not (math.isfinite(weight) and weight >= 0):
            raise ArtifactError(f"the weight {weight} of {folder} is not a number between 0 and 1")
    total = math.fsum(weight for _, weight in models)
    if abs(total - 1) > WEIGHTS_TOLERANCE:
        raise ArtifactError(f"the models' weights must add up to 1, but {listed} = {total:g}")


def _with_copies(tensors: dict[str, StoredTensor], copies: dict[str, str]) -> dict[str, StoredTensor]:
    """The tensors, and those that another model stores although they are tied: here the tensor that they repeat."""
    missing = {copy: tensors[source] for copy, source in copies.items() if copy not in tensors and source in tensors}
    return tensors | missing


def _average_shard(
    template: WeightShard,
    tensors: list[dict[str, StoredTensor]],
    weights: Sequence[float],
    out: Path,
    dtype: str | None,
) -> None:
    """Write one file with the template's header, or that of `dtype`. The other models may be sharded differently."""
    header, order = template.header, list(template.tensors)
    if dtype is not None:
        header, order = convert_header(template, DTYPES[dtype])
    with write_atomically(out) as temporary, temporary.open("wb") as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for name in order:
            stored = [found[name] for found in tensors]
            target = getattr(torch, dtype) if dtype is not None and stored[0].dtype in FLOATS else None
            for block in average_tensor(name, stored, weights, target):
                file.write(block.view(torch.uint8).numpy().data)


def _copy_other_files(source: Path, out: Path) -> None:
    """Copy config, tokenizer and index: every file that a merge reads except the weights, or an adapter's files."""
    for file in files_read(source):
        if file.suffix != SAFETENSORS and file.parent == source:
            with write_atomically(out / file.name) as temporary:
                shutil.copyfile(file, temporary)


def _rewrite_dtype(out: Path, dtype: str) -> None:
    """Set the dtype in config.json, under the key that it has there, and the size in the index."""
    config = read_object(out / CONFIG)
    write_json(
        out / CONFIG, _set_dtype(config if {"dtype", "torch_dtype"} & config.keys() else config | {"dtype": ""}, dtype)
    )
    if (out / INDEX).is_file():
        index = read_object(out / INDEX)
        size = sum(tensor.bytes for tensor in read_tensors(out).values())
        write_json(out / INDEX, index | {"metadata": index.get("metadata", {}) | {"total_size": size}})


def _set_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The configuration, and those nested in it, with another dtype."""
    return {
        key: dtype
        if key in {"dtype", "torch_dtype"}
        else _set_dtype(value, dtype)
        if isinstance(value, dict)
        else value
        for key, value in config.items()
    }
