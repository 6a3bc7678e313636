"""The examples that groups are made of, for stage `mle`: it trains on the prompts of `cpo`, in the same order."""

from pathlib import Path

import pyarrow as pa

from cpo_ray.artifacts import SELECTED, write_table
from cpo_ray.records import EXAMPLE_SCHEMA


def write_selected(table: pa.Table, out: Path) -> None:
    """Write the rows of a groups artifact `out` as examples (EXAMPLE_SCHEMA) to `out/selected/part-00000.parquet`.

    table: of the `Selection`. Its rows have the order of the groups, and its prompts are cut as in the groups.
    """
    write_table(out / SELECTED / "part-00000.parquet", table.select(EXAMPLE_SCHEMA.names).combine_chunks())
