"""Read safetensors files block by block, so that files larger than memory need only a few megabytes.

The format: 8 bytes with the header's length, little endian; the header, JSON from tensor name to dtype, shape and offsets;
the tensors' bytes. https://github.com/huggingface/safetensors
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from cpo_ray.errors import ArtifactError
from cpo_ray.inference.weight_files import INDEX, WEIGHTS, check_one_set_of_weights, read_index

BLOCK_NUMBERS = 2**18
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
FLOATS = {"F64", "F32", "F16", "BF16"}  # dtypes that can be converted; F8 tensors belong to a quantized model


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file. `dtype` is safetensors' name, `start` the offset in bytes from the start of the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size in the file."""
        return self.numel * DTYPES[self.dtype].itemsize

    def blocks(self) -> Iterator[torch.Tensor]:
        """Yield the elements in order, as flat tensors of at most BLOCK_NUMBERS in the stored dtype."""
        dtype = DTYPES[self.dtype]
        with self.file.open("rb") as file:
            file.seek(self.start)
            for begin in range(0, self.numel, BLOCK_NUMBERS):
                count = min(BLOCK_NUMBERS, self.numel - begin)
                raw = bytearray(count * dtype.itemsize)
                if file.readinto(raw) != len(raw):
                    raise ArtifactError(f"{self.file} is truncated: it is damaged, or was overwritten while being read")
                yield torch.frombuffer(raw, dtype=dtype)


@dataclass(frozen=True)
class WeightShard:
    """One safetensors file: its header as raw bytes, and its tensors in the order of their data."""

    path: Path
    header: bytes
    tensors: dict[str, StoredTensor]


def read_shards(model: Path) -> dict[str, WeightShard]:
    """File name -> shard, for a Hugging Face directory with one safetensors file, or several and their index.

    Raises ArtifactError if there are none, or a second set of weights, if a file is damaged, or if the index does not match the
    files.
    """
    check_one_set_of_weights(model)
    if not (model / INDEX).is_file():
        if not (model / WEIGHTS).is_file():
            raise ArtifactError(f"{model} holds neither {WEIGHTS} nor {INDEX}: only safetensors models can be read")
        return {WEIGHTS: read_shard(model / WEIGHTS)}
    places = read_index(model / INDEX)
    shards = {name: read_shard(model / name) for name in sorted(set(places.values()))}
    found = {tensor: name for name, shard in shards.items() for tensor in shard.tensors}
    if found != places:
        wrong = sorted(name for name in found.keys() | places.keys() if found.get(name) != places.get(name))
        raise ArtifactError(f"{model / INDEX} does not match the safetensors files beside it: {', '.join(wrong[:3])}")
    return shards


def read_tensors(model: Path) -> dict[str, StoredTensor]:
    """Tensor name -> its place on disk, over all shards. Raises as `read_shards`."""
    return {name: tensor for shard in read_shards(model).values() for name, tensor in shard.tensors.items()}


def convert_header(shard: WeightShard, dtype: str) -> tuple[bytes, list[str]]:
    """The shard's header if all tensors of FLOATS were stored as `dtype` (safetensors' name), and the order of their data.

    Wide elements come first, so that every tensor is aligned to its elements.
    """
    header = json.loads(shard.header)
    stored = {name: dtype if tensor.dtype in FLOATS else tensor.dtype for name, tensor in shard.tensors.items()}
    order = sorted(stored, key=lambda name: -DTYPES[stored[name]].itemsize)
    position = 0
    for name in order:
        size = shard.tensors[name].numel * DTYPES[stored[name]].itemsize
        header[name] |= {"dtype": stored[name], "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % 8), order


def read_shard(path: Path) -> WeightShard:
    """Read the header of one file. Raises ArtifactError for a damaged file or an unsupported dtype."""
    if not path.is_file():
        raise ArtifactError(f"{path} is missing, but the model's index names it")
    try:
        with safe_open(path, framework="pt"):  # compares the header with the file's length
            pass
    except SafetensorError as error:
        raise ArtifactError(f"{path} is not a complete safetensors file: {error}") from None
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length)
    entries: dict[str, Any] = json.loads(header)
    entries.pop("__metadata__", None)
    unknown = sorted(f"{name} ({entry['dtype']})" for name, entry in entries.items() if entry["dtype"] not in DTYPES)
    if unknown:
        raise ArtifactError(f"{path} holds tensors of an unsupported dtype: {', '.join(unknown[:3])}")
    ordered = sorted(entries.items(), key=lambda item: item[1]["data_offsets"])
    data = 8 + length
    tensors = {
        name: StoredTensor(path, entry["dtype"], tuple(entry["shape"]), data + entry["data_offsets"][0])
        for name, entry in ordered
    }
    return WeightShard(path, header, tensors)
