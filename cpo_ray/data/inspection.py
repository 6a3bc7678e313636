"""Looks at the beginning of the data, for `validate` and `plan`, without reading or downloading the rest."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from cpo_ray.config import DataConfig, RunConfig, SourceConfig
from cpo_ray.data import dolly
from cpo_ray.data.instructions import read_rows
from cpo_ray.data.layouts import PREFERENCES, layout_of
from cpo_ray.data.preferences import RatedRow, arrange, read_preferences
from cpo_ray.data.rows import BadRow, FileFormat, InstructionRow, ReadingCounts, without_numbers
from cpo_ray.data.sources import is_hub_dataset, list_parts, open_part, part_bytes
from cpo_ray.errors import DataError

FIRST_ROWS = 1000
PARQUET = "Parquet"
ASSUMED_ROWS = 10_000  # of data that is not on this machine


@dataclass(frozen=True)
class Beginning:
    """The first rows of a source, and how many rows it has."""

    place: str
    format: str
    layout: str
    seen: int  # rows that were read
    usable: int  # rows that can be used; prompts, if several rows have one answer each
    bad: list[BadRow]
    rows: int | None  # of all its files, estimated from their bytes unless `is_exact`; None if unknown
    is_exact: bool

    def __str__(self) -> str:
        count = "" if self.rows is None else f"{self.rows:,} rows" if self.is_exact else f"about {self.rows:,} rows"
        found = "all can be used" if not self.bad else f"{len(self.bad)} cannot be used ({describe_reasons(self.bad)})"
        return f"{self.place}: {self.format}, layout `{self.layout}`, {count}; of the first {self.seen:,}, {found}"


def read_beginning(source: SourceConfig) -> Beginning | str:
    """The first FIRST_ROWS rows of a source's first file, or why they are not read: it is on the hub, or not on this machine.

    Raises DataError for a file that cannot be read, or whose layout is unknown.
    """
    if is_hub_dataset(source.path):
        return f"{source.path}: a dataset on the Hugging Face hub; it is read when the run starts"
    if "://" in source.path:
        return f"{source.path}: a URL; it is read when the run starts"
    parts = list_parts(source.path, source.source)
    missing = [part for part in parts if not Path(part).expanduser().is_file()]
    if missing:
        return f"{missing[0]} is not on this machine; it is read when the run starts"
    hint = dolly.HINT if source.source == "dolly" else ""
    layout = layout_of(source, parts, hint)
    with open_part(parts[0], hint) as file:
        read = read_preferences if layout.name == PREFERENCES else read_rows
        records, bytes_per_row = _read_first(read(file, parts[0], layout), file)
    rows, is_exact = _count_rows(parts, records, bytes_per_row)
    formats = [record.format for record in records if isinstance(record, FileFormat)]
    bad = [record for record in records if isinstance(record, BadRow)]
    rated = [record for record in records if isinstance(record, RatedRow)]
    arranged = list(arrange(rated, 0, max_answers=2, counts=Counter()))
    bad += [record for record in arranged if isinstance(record, BadRow)]
    usable = sum(isinstance(record, InstructionRow) for record in [*records, *arranged])
    place = parts[0] if len(parts) == 1 else f"{parts[0]} and {len(parts) - 1} more files"
    return Beginning(place, formats[0], layout.name, len(records) - len(formats), usable, bad, rows, is_exact)


def with_expected_rows(config: RunConfig, found: Sequence[Beginning | str]) -> tuple[RunConfig, list[str]]:
    """The configuration with numbers of rows for shares of the data, as expected from its beginning; and a remark on them."""
    if not config.data.has_shares:
        return config, []
    counts = [_usable_rows(beginning) for beginning in found]
    total = sum(count for count in counts if count is not None)
    known = bool(total) and None not in counts
    data = config.data.with_counts(total if known else ASSUMED_ROWS)
    sizes = ", ".join(f"{data.rows(split):,} {split}" for split in data.sizes)
    about = "about " if any(isinstance(beginning, Beginning) and not beginning.is_exact for beginning in found) else ""
    origin = f"of {about}{total:,} usable rows" if known else f"if there are {ASSUMED_ROWS:,} rows, which is assumed"
    return config.model_copy(update={"data": data}), [f"splits: {sizes}, {origin}"]


def _usable_rows(beginning: Beginning | str) -> int | None:
    """Rows of a source without the share that cannot be used; None if they are not known."""
    if isinstance(beginning, str) or beginning.rows is None:
        return None
    return beginning.rows * beginning.usable // max(beginning.seen, 1)


def check_beginning(data: DataConfig, found: Iterable[Beginning | str]) -> None:
    """Raise DataError for a row at which stage `data` would stop."""
    bad = [row for beginning in found if isinstance(beginning, Beginning) for row in beginning.bad]
    if bad and data.on_bad_row == "error":
        raise DataError(f"{bad[0]}. Repair it, or set data.on_bad_row=quarantine to leave out and count such rows.")


def describe_reasons(bad: Sequence[BadRow]) -> str:
    """The reasons, most frequent first, with their counts and the first place of each."""
    first: dict[str, BadRow] = {}
    for row in bad:
        first.setdefault(without_numbers(row.reason), row)
    counts = Counter(without_numbers(row.reason) for row in bad)
    return "; ".join(f"{count} like {first[reason]}" for reason, count in counts.most_common())


def _read_first(found: Iterable[object], file: IO[bytes]) -> tuple[list[object], float | None]:
    """The format and the first FIRST_ROWS rows; and the stored bytes of a row, or None if these are all rows.

    Readers fill a buffer and then take rows from it. When the file's position moves, the rows before it are those that the
    position before it holds.
    """
    records: list[object] = []
    per_row, position = None, file.tell()
    for number, record in enumerate(found):
        if isinstance(record, ReadingCounts):
            return records, None
        if number <= FIRST_ROWS:
            records.append(record)
        if file.tell() > position:
            per_row = position / (number - 1) if number > 1 and position else per_row
            position = file.tell()
        if number > FIRST_ROWS and per_row is not None:
            break
    return records, per_row


def _count_rows(
    parts: Sequence[str], records: Sequence[object], bytes_per_row: float | None
) -> tuple[int | None, bool]:
    """(rows of all files, whether they were counted)."""
    if any(isinstance(record, FileFormat) and record.format == PARQUET for record in records):
        try:
            return sum(pq.read_metadata(part).num_rows for part in parts), True
        except (pa.ArrowException, OSError):
            return None, False
    rows = len(records) - 1  # without the format
    if bytes_per_row is None and rows < FIRST_ROWS:
        return (rows, True) if len(parts) == 1 else (rows * sum(map(part_bytes, parts)) // part_bytes(parts[0]), False)
    return round(sum(map(part_bytes, parts)) / (bytes_per_row or part_bytes(parts[0]) / rows)), False
