"""Reads a source's parts: sequentially in this process, or in parallel as Ray Data tasks if that is faster."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from rich.markup import escape

from cpo_ray.cluster.raydata import configure
from cpo_ray.data.rows import FileFormat
from cpo_ray.data.sources import DEFAULT_PART, HubPart, list_files, open_part, part_bytes
from cpo_ray.errors import DataError
from cpo_ray.monitoring.console import progress_bar, say

Reader = Callable[[IO[bytes], str], Iterator[Any]]
"""Takes an open part and its name and yields the part's records. Must be serializable for Ray workers."""

PARALLEL_BYTES = 8 << 20  # total size of the parts from which on starting Ray workers pays
CHUNK_RECORDS = 64
BLOCK_BYTES = 2 << 20  # chunks that Ray Data moves at once
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Chunk:
    """Consecutive records of a part."""

    part: int  # index of the part
    number: int  # index of the chunk within its part
    records: list[Any]
    byte: int  # the reader's position in the part
    error: str | None = None  # why the rest of the part cannot be read


def reads_in_parallel(sizes: Sequence[int]) -> bool:
    """Whether parts of these sizes (bytes) are read by Ray Data."""
    return len(sizes) > 1 and sum(sizes) >= PARALLEL_BYTES


def read_chunks(parts: Sequence[str], reader: Reader, hint: str = "") -> Iterator[Chunk]:
    """The chunks of all parts. Those of one part come in order; if parts are read in parallel, they are interleaved.

    hint: what to do if a file is missing. Ray must be initialised if `reads_in_parallel`. Memory holds a few chunks.
    Raises DataError for a part that cannot be read.
    """
    sizes = [part_bytes(part, hint) for part in parts]
    read = _read_in_parallel if reads_in_parallel(sizes) else _read_sequentially
    positions = [0] * len(parts)
    formats: set[str] = set()
    with progress_bar("reading", sum(sizes) / MEGABYTE, "MB") as progress:
        for chunk in read(parts, reader, hint):
            if chunk.error is not None:
                raise DataError(chunk.error)
            _say_formats(chunk.records, formats)
            progress.advance(max(0, min(chunk.byte, sizes[chunk.part]) - positions[chunk.part]) / MEGABYTE)
            positions[chunk.part] = max(positions[chunk.part], chunk.byte)
            yield chunk


def list_and_report(path: str, source: str, hub: HubPart = DEFAULT_PART) -> list[str]:
    """The parts of a source (`sources.list_files`). Prints which files are passed over."""
    listing = list_files(path, source, hub)
    for message in listing.passed_over:
        say(f"  {escape(message)}")
    return listing.parts


def _say_formats(records: Sequence[Any], formats: set[str]) -> None:
    """Print each format once, with the first file of it."""
    for record in records:
        if isinstance(record, FileFormat) and record.format not in formats:
            formats.add(record.format)
            say(f"  reading {escape(record.file)} as {record.format}")


def _read_sequentially(parts: Sequence[str], reader: Reader, hint: str) -> Iterator[Chunk]:
    for number, part in enumerate(parts):
        yield from _read_part(number, part, part, reader, hint)


def _read_part(number: int, name: str, location: str, reader: Reader, hint: str) -> Iterator[Chunk]:
    """name: the file's name in messages. location: its path or URL.

    A DataError becomes the last chunk's `error`, because Ray would wrap an exception raised in a task.
    """
    counter = itertools.count()
    try:
        with open_part(location, hint) as file:
            records = reader(file, name)
            while batch := list(itertools.islice(records, CHUNK_RECORDS)):
                yield Chunk(number, next(counter), batch, file.tell())
    except DataError as error:
        yield Chunk(number, next(counter), [], 0, str(error))


def _read_in_parallel(parts: Sequence[str], reader: Reader, hint: str) -> Iterator[Chunk]:
    import ray
    from ray.data import TaskPoolStrategy

    def read(batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for number, name, location in zip(batch["number"], batch["name"], batch["location"], strict=True):
            for chunk in _read_part(int(number), str(name), str(location), reader, hint):
                yield {"chunk": _as_object(chunk)}

    rows = [{"number": number, "name": part, "location": _absolute(part)} for number, part in enumerate(parts)]
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
    """Ray workers run in another working directory, so a relative path would not be found there."""
    return part if "://" in part else str(Path(part).expanduser().resolve())
