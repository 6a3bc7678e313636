"""The examples that groups are made of, for stage `mle`: it trains on the prompts of `cpo`, in the same order."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from cpo_ray.artifacts import SELECTED, write_table
from cpo_ray.records import EXAMPLE_SCHEMA


def write_selected(table: pa.Table, prompt_tokens: int, out: Path) -> None:
    """Write the rows of a groups artifact `out` as examples (EXAMPLE_SCHEMA) to `out/selected/part-00000.parquet`.

    Rows have the order of the groups, and prompts are cut as in the groups: to their last `prompt_tokens` tokens.
    table, prompt_tokens: of the `Selection`.
    """
    field, place = EXAMPLE_SCHEMA.field("prompt_ids"), EXAMPLE_SCHEMA.get_field_index("prompt_ids")
    cut = _last_tokens(table["prompt_ids"].combine_chunks(), prompt_tokens)
    rows = table.select(EXAMPLE_SCHEMA.names).set_column(place, field, cut)
    write_table(out / SELECTED / "part-00000.parquet", rows.combine_chunks())


def _last_tokens(lists: pa.ListArray, tokens: int) -> pa.ListArray:
    """The last `tokens` tokens of each list."""
    offsets = lists.offsets.to_numpy().astype(np.int64)
    lengths = np.diff(offsets)
    from_the_end = np.repeat(offsets[1:], lengths) - np.arange(offsets[0], offsets[-1])
    kept = lists.values.slice(offsets[0], offsets[-1] - offsets[0]).filter(pa.array(from_the_end <= tokens))
    starts = np.concatenate([[0], np.cumsum(np.minimum(lengths, tokens))])
    return pa.ListArray.from_arrays(pa.array(starts, pa.int32()), kept)
