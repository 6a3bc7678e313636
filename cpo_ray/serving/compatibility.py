"""Check that two models are compatible, so that their weights can be averaged or swapped in one engine."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cpo_ray.errors import ArtifactError
from cpo_ray.serving.safetensors_files import StoredTensor, read_tensors

CONFIG = "config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
# Keys of config and tokenizer files that do not change what the model computes.
IGNORED_KEYS = {"name_or_path", "_name_or_path", "transformers_version", "processor_class", "use_cache", "torch_dtype"}
LISTED = 10


def check_compatible(model: Path, other: Path, purpose: str) -> None:
    """Raise ArtifactError with the first ten differences in tokenizer, config, tensor names, shapes and dtypes.

    `purpose` completes the message "A and B cannot ...". Tensor values are not compared.
    """
    differences = [
        *_compare_tokenizers(model, other),
        *_compare_json("config", model / CONFIG, other / CONFIG),
        *_compare_tensors(model, read_tensors(model), other, read_tensors(other)),
    ]
    if differences:
        lines = "\n".join(f"  {difference}" for difference in differences[:LISTED])
        first = f", the first {LISTED}" if len(differences) > LISTED else ""
        count = f"{len(differences)} difference{'s' if len(differences) > 1 else ''}"
        raise ArtifactError(f"{model} and {other} cannot {purpose}; {count}{first}:\n{lines}")


def _compare_tensors(
    model: Path, tensors: dict[str, StoredTensor], other: Path, others: dict[str, StoredTensor]
) -> Iterator[str]:
    for name in sorted(tensors.keys() ^ others.keys()):
        yield f"{name}: only in {model if name in tensors else other}"
    for name in sorted(tensors.keys() & others.keys()):
        left, right = tensors[name], others[name]
        if left.shape != right.shape:
            yield f"{name}: shape {list(left.shape)} in {model}, {list(right.shape)} in {other}"
        if left.dtype != right.dtype:
            yield f"{name}: dtype {left.dtype} in {model}, {right.dtype} in {other}"


def _compare_tokenizers(model: Path, other: Path) -> Iterator[str]:
    for name in TOKENIZER_FILES:
        ours, theirs = model / name, other / name
        if ours.is_file() != theirs.is_file():
            yield f"tokenizer: {name} only in {model if ours.is_file() else other}"
        elif ours.is_file() and ours.read_bytes() != theirs.read_bytes():
            if name.endswith(".json"):
                yield from _compare_json(f"tokenizer: {name}", ours, theirs)
            else:
                yield f"tokenizer: {name} differs"


def _compare_json(what: str, ours: Path, theirs: Path) -> Iterator[str]:
    left, right = _read_object(ours), _read_object(theirs)
    for key in sorted(left.keys() | right.keys()):
        if key not in IGNORED_KEYS and left.get(key) != right.get(key):
            yield f"{what}: {key!r} differs"


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path.parent} is not a model directory: {path.name}: {error}") from None
    if not isinstance(content, dict):
        raise ArtifactError(f"{path} is not a JSON object")
    return content
