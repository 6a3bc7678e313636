"""Reading a source's parts: one after the other here, or side by side as tasks of Ray Data where that is sooner."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from cpo_ray.cluster.raydata import configure
from cpo_ray.data.sources import open_part, part_bytes
from cpo_ray.errors import DataError
from cpo_ray.monitoring.console import bar

Reader = Callable[[IO[bytes], str], Iterator[Any]]
"""From an open part and its name to its records. Ray carries it to its workers."""

PARALLEL_BYTES = 8 << 20  # several parts of fewer bytes in all are read before Ray's workers are up
RECORDS = 64  # of a chunk
BLOCK_BYTES = 2 << 20  # of chunks that Ray Data moves at once
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Chunk:
    """Consecutive records of a part."""

    part: int  # its number
    number: int  # of the chunk within its part
    records: list[Any]
    byte: int  # how far in the part its reading has come
    error: str | None = None  # why the part cannot be read on


def reads_in_parallel(sizes: Sequence[int]) -> bool:
    """Whether parts of these sizes are read by Ray Data."""
    return len(sizes) > 1 and sum(sizes) >= PARALLEL_BYTES


def read_chunks(parts: Sequence[str], reader: Reader, hint: str = "") -> Iterator[Chunk]:
    """All parts' chunks. Those of a part come in order; where parts are read in parallel, they are mixed.

    hint: what to do where a file is missing. Ray must be initialised where `reads_in_parallel`. Memory holds some
    chunks. Raises DataError for a part that cannot be read.
    """
    sizes = [part_bytes(part, hint) for part in parts]
    read = _read_in_parallel if reads_in_parallel(sizes) else _read_in_turn
    reached = [0] * len(parts)
    with bar("reading", max(sum(sizes) / MEGABYTE, 0.1), "MB") as progress:
        for chunk in read(parts, reader, hint):
            if chunk.error is not None:
                raise DataError(chunk.error)
            progress.advance(max(0, min(chunk.byte, sizes[chunk.part]) - reached[chunk.part]) / MEGABYTE)
            reached[chunk.part] = max(reached[chunk.part], chunk.byte)
            yield chunk


def _read_in_turn(parts: Sequence[str], reader: Reader, hint: str) -> Iterator[Chunk]:
    for number, part in enumerate(parts):
        yield from _read_part(number, part, part, reader, hint)


def _read_part(number: int, name: str, place: str, reader: Reader, hint: str) -> Iterator[Chunk]:
    """name: what messages call the file. place: where it is. A DataError is the last chunk's, to cross processes as itself."""
    counter = itertools.count()
    try:
        with open_part(place, hint) as file:
            records = reader(file, name)
            while batch := list(itertools.islice(records, RECORDS)):
                yield Chunk(number, next(counter), batch, file.tell())
    except DataError as error:
        yield Chunk(number, next(counter), [], 0, str(error))


def _read_in_parallel(parts: Sequence[str], reader: Reader, hint: str) -> Iterator[Chunk]:
    import ray
    from ray.data import TaskPoolStrategy

    def read(batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for number, name, place in zip(batch["number"], batch["name"], batch["place"], strict=True):
            for chunk in _read_part(int(number), str(name), str(place), reader, hint):
                yield {"chunk": _as_object(chunk)}

    rows = [{"number": number, "name": part, "place": _absolute(part)} for number, part in enumerate(parts)]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    configure(dataset)
    dataset.context.target_max_block_size = BLOCK_BYTES
    chunks = dataset.map_batches(read, batch_size=1, batch_format="numpy", num_cpus=1, compute=TaskPoolStrategy())
    for batch in chunks.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=1):
        yield batch["chunk"][0]


def _as_object(chunk: Chunk) -> "np.ndarray[Any, Any]":
    column = np.empty(1, dtype=object)
    column[0] = chunk
    return column


def _absolute(part: str) -> str:
    """Ray's workers have a working directory of their own."""
    return part if "://" in part else str(Path(part).expanduser().resolve())
