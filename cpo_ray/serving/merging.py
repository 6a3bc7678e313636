"""The weight-space ensemble: theta = alpha * theta_MLE + (1 - alpha) * theta_CPO, tensor by tensor."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from cpo_ray.artifacts import MANIFEST, Summary, write_atomically
from cpo_ray.errors import ArtifactError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
CLERICAL_TOKENIZER_KEYS = {"name_or_path", "transformers_version", "processor_class"}  # where it lay, not what it does
CARD = "README.md"  # tells of another model than the merged one
WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack"}
SHOWN_DIFFERENCES = 10


def merge_models(mle: Path, cpo: Path, alpha: float, out: Path) -> Summary:
    """Write the Hugging Face directory `out` with theta = alpha * MLE + (1 - alpha) * CPO (the paper, "Weight-space ensemble").

    Float32 arithmetic, stored in the models' dtype; `alpha` 1 and 0 give the weights of `mle` and `cpo` bit for bit.
    Shards, index, config and tokenizer are those of `cpo`. One shard is in memory at a time. Returns
    {"alpha", "tensors", "parameters", "shards"}.

    Raises ArtifactError for alpha outside [0, 1], an `out` that is an input, tokenizers, keys, shapes or dtypes that
    differ (the first ten differences are listed), integer tensors that differ, and weights that are not finite.
    """
    if not 0 <= alpha <= 1:
        raise ArtifactError(f"alpha {alpha} is outside [0, 1]")
    if out.resolve() in {mle.resolve(), cpo.resolve()}:
        raise ArtifactError(f"the merged model would overwrite its input {out}; choose another directory")
    mle_shards, cpo_shards = _locate_tensors(mle), _locate_tensors(cpo)
    differences = [*_compare_tokenizers(mle, cpo), *_compare_tensors(mle, mle_shards, cpo, cpo_shards)]
    if differences:
        shown = "\n".join(f"  {difference}" for difference in differences[:SHOWN_DIFFERENCES])
        raise ArtifactError(
            f"{mle} and {cpo} cannot be merged; {len(differences)} differences, the first {SHOWN_DIFFERENCES}:\n{shown}"
        )

    out.mkdir(parents=True, exist_ok=True)
    parameters = 0
    shards = sorted(set(cpo_shards.values()))
    for shard in shards:
        parameters += _merge_shard(mle, mle_shards, cpo / shard, alpha, out / shard)
    _copy_other_files(cpo, out)
    return {"alpha": alpha, "tensors": len(cpo_shards), "parameters": parameters, "shards": len(shards)}


def interpolate(mle: torch.Tensor, cpo: torch.Tensor, alpha: float, name: str) -> torch.Tensor:
    """alpha * mle + (1 - alpha) * cpo for one tensor of any shape, in float32, returned in the stored dtype.

    Raises ArtifactError naming the tensor where a weight is not finite or integers differ.
    """
    if not mle.is_floating_point():
        if not torch.equal(mle, cpo):
            raise ArtifactError(f"{name}: {mle.dtype} tensors cannot be interpolated, and the two models' differ")
        return cpo
    for tensor, model in ((mle, "MLE"), (cpo, "CPO")):
        if not torch.isfinite(tensor).all():
            raise ArtifactError(f"{name}: the {model} model holds NaN or infinite weights")
    if alpha == 0:
        return cpo
    if alpha == 1:
        return mle
    return (alpha * mle.float() + (1 - alpha) * cpo.float()).to(cpo.dtype)


def _merge_shard(mle: Path, mle_shards: dict[str, str], cpo_shard: Path, alpha: float, out_shard: Path) -> int:
    """Merge the tensors of one of the CPO model's files; the MLE model may be sharded in another way."""
    merged: dict[str, torch.Tensor] = {}
    with safe_open(cpo_shard, framework="pt") as cpo_file:
        for name in cpo_file.keys():  # noqa: SIM118 - not a dict
            with safe_open(mle / mle_shards[name], framework="pt") as mle_file:
                merged[name] = interpolate(mle_file.get_tensor(name), cpo_file.get_tensor(name), alpha, name)
        metadata = cpo_file.metadata()
    with write_atomically(out_shard) as temporary:
        save_file(merged, temporary, metadata=metadata)
    return sum(tensor.numel() for tensor in merged.values())


def _locate_tensors(model: Path) -> dict[str, str]:
    """Tensor name -> the file that holds it, relative to `model`."""
    if (model / INDEX).is_file():
        index = json.loads((model / INDEX).read_text(encoding="utf-8"))
        return dict(index["weight_map"])
    if not (model / WEIGHTS).is_file():
        raise ArtifactError(f"{model} holds neither {WEIGHTS} nor {INDEX}: only safetensors models are merged")
    with safe_open(model / WEIGHTS, framework="pt") as file:
        return dict.fromkeys(file.keys(), WEIGHTS)


def _compare_tensors(mle: Path, mle_shards: dict[str, str], cpo: Path, cpo_shards: dict[str, str]) -> Iterator[str]:
    for name in sorted(mle_shards.keys() ^ cpo_shards.keys()):
        yield f"{name}: only in {mle if name in mle_shards else cpo}"
    mle_forms, cpo_forms = _read_forms(mle, mle_shards), _read_forms(cpo, cpo_shards)
    for name in sorted(mle_forms.keys() & cpo_forms.keys()):
        for what, ours, theirs in zip(("shape", "dtype"), mle_forms[name], cpo_forms[name], strict=True):
            if ours != theirs:
                yield f"{name}: {what} {ours} in {mle}, {theirs} in {cpo}"


def _read_forms(model: Path, shards: dict[str, str]) -> dict[str, tuple[list[int], str]]:
    """Tensor name -> (shape, dtype), from the files' headers alone. Raises ArtifactError where the index lies."""
    forms = {}
    for shard in sorted(set(shards.values())):
        if not (model / shard).is_file():
            raise ArtifactError(f"{model / INDEX} names {shard}, which is not there")
        with safe_open(model / shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                view = file.get_slice(name)
                forms[name] = (list(view.get_shape()), str(view.get_dtype()))
    missing = sorted(shards.keys() - forms.keys())
    if missing:
        raise ArtifactError(f"{model / INDEX} names tensors that its files do not hold: {', '.join(missing[:3])}")
    return forms


def _compare_tokenizers(mle: Path, cpo: Path) -> Iterator[str]:
    for name in TOKENIZER_FILES:
        ours, theirs = mle / name, cpo / name
        if ours.is_file() != theirs.is_file():
            yield f"tokenizer: {name} only in {mle if ours.is_file() else cpo}"
        elif ours.is_file() and ours.read_bytes() != theirs.read_bytes():
            yield from _compare_tokenizer_file(name, ours, theirs)


def _compare_tokenizer_file(name: str, ours: Path, theirs: Path) -> Iterator[str]:
    if not name.endswith(".json"):
        yield f"tokenizer: {name} differs"
        return
    left, right = (json.loads(path.read_text(encoding="utf-8")) for path in (ours, theirs))
    for key in sorted(left.keys() | right.keys()):
        if key not in CLERICAL_TOKENIZER_KEYS and left.get(key) != right.get(key):
            yield f"tokenizer: {name}: {key!r} differs"


def _copy_other_files(source: Path, out: Path) -> None:
    """Config, tokenizer, index: everything directly in `source` but its weights, its manifest and its model card."""
    for file in sorted(source.iterdir()):
        kept = (
            file.suffix not in WEIGHT_SUFFIXES and file.name not in (MANIFEST, CARD) and not file.name.startswith(".")
        )
        if kept and file.is_file():
            shutil.copyfile(file, out / file.name)
