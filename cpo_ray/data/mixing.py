"""Mixes the rows of several sources by their weights, without repeating a row."""

from collections.abc import Sequence

from cpo_ray.config import SourceConfig
from cpo_ray.data.prepared import SourceLog
from cpo_ray.data.rows import InstructionRow, content_hash
from cpo_ray.errors import DataError


def mix(
    rows: Sequence[list[InstructionRow]], sources: Sequence[SourceConfig], seed: int, log: SourceLog
) -> list[InstructionRow]:
    """The rows of all sources, one source after another; with weights, as many of each as its weight allows.

    The source that has the fewest rows for its weight gives all of them. Which rows of the others are used depends on the seed
    and their content. `log` counts the others (`rows_left_out_by_weight`). Raises DataError for a source without rows, or with
    a weight so small that no row of it is used.
    """
    for found, source in zip(rows, sources, strict=True):
        if not found and len(sources) > 1:
            raise DataError(f"data.sources: {source.path} has no usable row")
    weights = [source.weight for source in sources if source.weight is not None]
    if not weights:
        return [row for found in rows for row in found]
    scale = min(len(found) / weight for found, weight in zip(rows, weights, strict=True))
    counts = [int(scale * weight + 1e-9) for weight in weights]
    if 0 in counts:
        place = counts.index(0)
        raise DataError(
            f"data.sources: weight {weights[place]:g} of {sources[place].path} gives none of its {len(rows[place])} rows, "
            f"because {sources[counts.index(max(counts))].path} has only {max(map(len, rows))} rows for its weight. Raise it."
        )
    log.counts["rows_left_out_by_weight"] += sum(map(len, rows)) - sum(counts)
    return [row for found, count in zip(rows, counts, strict=True) for row in _choose(found, count, seed)]


def _choose(rows: list[InstructionRow], count: int, seed: int) -> list[InstructionRow]:
    """`count` of the rows, in their order."""
    if count == len(rows):
        return rows

    def key(number: int) -> tuple[str, int]:
        row = rows[number]
        return content_hash(seed, "mix", row.instruction, row.context, row.response), number

    return [rows[number] for number in sorted(sorted(range(len(rows)), key=key)[:count])]
