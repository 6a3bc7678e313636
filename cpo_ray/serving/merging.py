"""The weight-space ensemble theta = alpha * theta_MLE + (1 - alpha) * theta_CPO, and weighted means of any models."""

import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from cpo_ray.artifacts import MANIFEST, Summary, write_atomically
from cpo_ray.errors import ArtifactError
from cpo_ray.serving.compatibility import check_compatible
from cpo_ray.serving.safetensors_files import StoredTensor, WeightShard, read_shards, read_tensors

CARD = "README.md"  # describes the input model, not the merged one
SAFETENSORS = ".safetensors"
OTHER_WEIGHTS = {".bin", ".pt", ".pth", ".h5", ".msgpack"}
WEIGHTS_TOLERANCE = 1e-6  # of their sum: 0.1 + 0.2 + 0.7 is not 1 in binary


def merge_models(mle: Path, cpo: Path, alpha: float, out: Path) -> Summary:
    """Write the Hugging Face directory `out` with theta = alpha * MLE + (1 - alpha) * CPO (the paper, "Weight-space ensemble").

    Same as `average_models` with two models: `alpha` 1 and 0 copy the weights of `mle` and `cpo` bit for bit; shards,
    index, config and tokenizer are those of `cpo`. Returns {"alpha", "tensors", "parameters", "shards"}.

    Raises ArtifactError if alpha is outside [0, 1], and as `average_models`.
    """
    if not 0 <= alpha <= 1:
        raise ArtifactError(f"alpha {alpha} is outside [0, 1]")
    return {"alpha": alpha, **average_models([(cpo, 1 - alpha), (mle, alpha)], out)}


def average_models(models: Sequence[tuple[Path, float]], out: Path) -> Summary:
    """Write the Hugging Face directory `out` with the mean of `models`: (directory, weight), weights that sum to 1.

    Arithmetic is in float32 (float64 for stored float64), rounded once to the stored dtype. A model with weight 1 is copied
    bit for bit. Tensors are streamed in blocks, so memory does not grow with the models. Tied weights are stored once, as in
    the inputs. Shards, index, config and tokenizer are those of the first model. Each file is written atomically.
    Returns {"tensors", "parameters", "shards"}.

    Raises ArtifactError for fewer than two models, weights that are negative or do not sum to 1, an `out` that is an input,
    different tokenizers, configs, keys, shapes or dtypes (lists the first ten differences), different integer tensors, and
    tensors with values that are not finite, even in a model with weight 0.
    """
    _check_weights(models)
    folders, weights = [folder for folder, _ in models], [weight for _, weight in models]
    if out.resolve() in {folder.resolve() for folder in folders}:
        raise ArtifactError(f"the merged model would overwrite its input {out}; choose another directory")
    template, *others = folders
    shards = read_shards(template)
    for other in others:
        check_compatible(other, template, "be merged")
    tensors = [read_tensors(folder) for folder in folders]

    out.mkdir(parents=True, exist_ok=True)
    parameters = 0
    for name, shard in shards.items():
        _average_shard(shard, tensors, weights, out / name)
        parameters += sum(tensor.numel for tensor in shard.tensors.values())
    _copy_other_files(template, out)
    return {"tensors": len(tensors[0]), "parameters": parameters, "shards": len(shards)}


def files_read(model: Path) -> list[Path]:
    """The files of a model directory that a merge reads, by name: no manifest, no model card, only safetensors weights."""
    return [
        file
        for file in sorted(model.iterdir())
        if file.is_file()
        and file.suffix not in OTHER_WEIGHTS
        and file.name not in (MANIFEST, CARD)
        and not file.name.startswith(".")
    ]


def average_tensor(name: str, stored: Sequence[StoredTensor], weights: Sequence[float]) -> Iterator[torch.Tensor]:
    """Yield sum_i weights[i] * stored[i] as flat blocks in the stored dtype. All tensors have the same shape and dtype.

    Raises ArtifactError with the tensor's name if a value is not finite or integers differ.
    """
    for blocks in zip(*(tensor.blocks() for tensor in stored), strict=True):
        dtype = blocks[0].dtype
        if not dtype.is_floating_point:
            if any(not torch.equal(blocks[0], block) for block in blocks[1:]):
                raise ArtifactError(f"{name}: {dtype} tensors cannot be averaged, and the models' values differ")
            yield blocks[0]
            continue
        wide = [block.to(torch.float64 if dtype == torch.float64 else torch.float32) for block in blocks]
        for tensor, block in zip(stored, wide, strict=True):
            if not torch.isfinite(block).all():
                raise ArtifactError(f"{name}: {tensor.file} holds NaN or infinite weights")
        if 1 in weights:
            yield blocks[weights.index(1)]
        else:
            yield sum(weight * block for weight, block in zip(weights, wide, strict=True)).to(dtype)


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


def _average_shard(
    template: WeightShard, tensors: list[dict[str, StoredTensor]], weights: Sequence[float], out: Path
) -> None:
    """Write one file with the template's header. The other models may be sharded differently."""
    with write_atomically(out) as temporary, temporary.open("wb") as file:
        file.write(len(template.header).to_bytes(8, "little"))
        file.write(template.header)
        for name in template.tensors:
            for block in average_tensor(name, [found[name] for found in tensors], weights):
                file.write(block.view(torch.uint8).numpy().data)


def _copy_other_files(source: Path, out: Path) -> None:
    """Copy config, tokenizer and index: every file that a merge reads except the weights."""
    for file in files_read(source):
        if file.suffix != SAFETENSORS:
            with write_atomically(out / file.name) as temporary:
                shutil.copyfile(file, temporary)
