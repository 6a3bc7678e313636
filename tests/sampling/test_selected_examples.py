"""The examples that groups are made of, beside the groups."""

import pyarrow as pa

from cpo_ray.artifacts import read_table
from cpo_ray.records import EXAMPLE_SCHEMA
from cpo_ray.sampling.selected_examples import write_selected
from tests.sampling.example_rows import make_table


def test_the_selected_rows_are_written_as_examples(tmp_path):
    rows = make_table([[9, 0], [1, 2, 0], [3, 4, 0], [5, 6, 0]]).to_pylist()
    for row, prompt in zip(rows, ([9], [1, 2, 3, 4], [5], [6, 7, 8]), strict=True):
        row["prompt_ids"] = prompt
    table = pa.Table.from_pylist(rows, EXAMPLE_SCHEMA).append_column("unhelpful", pa.array([[[1]]] * 4))
    rows = table.slice(1)  # a slice does not begin at the first value
    write_selected(rows, tmp_path)
    written = read_table(tmp_path / "selected")
    assert written.schema.equals(EXAMPLE_SCHEMA)
    assert written["prompt_ids"].to_pylist() == [[1, 2, 3, 4], [5], [6, 7, 8]]
    assert written["response_ids"].to_pylist() == [[1, 2, 0], [3, 4, 0], [5, 6, 0]]
