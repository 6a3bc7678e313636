"""Reads databricks-dolly-15k: one JSON object per line, with instruction, context, response and category."""

from collections.abc import Iterator
from pathlib import Path

from cpo_ray.data.instructions import read_instructions
from cpo_ray.data.layouts import DOLLY
from cpo_ray.data.rows import BadRow, FileFormat, InstructionRow, ReadingCounts
from cpo_ray.data.sources import open_part

HINT = (
    "Download databricks-dolly-15k.jsonl (Hugging Face: databricks/databricks-dolly-15k) and name it with "
    "--set data.path=FILE."
)


def read_dolly(path: Path) -> Iterator[FileFormat | InstructionRow | BadRow | ReadingCounts]:
    """Stream the rows of one file: an InstructionRow, or a BadRow with the reason (see `read_instructions`).

    Raises DataError if the file cannot be read or has no lines.
    """
    with open_part(str(path), HINT) as file:
        yield from read_instructions(file, str(path), DOLLY, "dolly")
