import io

import pytest

from cpo_ray.data.lines import MAX_LINE_BYTES, read_lines
from cpo_ray.errors import DataError


def test_a_line_without_end_does_not_fill_the_memory() -> None:
    class Endless(io.RawIOBase):
        def readline(self, size: int | None = -1) -> bytes:
            assert size == MAX_LINE_BYTES + 1
            return b"x" * size

    with pytest.raises(DataError, match=r"big\.jsonl:1: a line of more than 64 MiB"):
        next(read_lines(Endless(), "big.jsonl"))  # type: ignore[arg-type]
