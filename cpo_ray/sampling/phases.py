"""Sampling in two phases: vLLM samples for all units and ends; then scorers and rankers have the memory for themselves.

The units wait in files between the phases, so a killed run samples only what is missing. Groups do not depend on the phases.
"""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from cpo_ray.artifacts import write_table
from cpo_ray.cluster.raydata import plain_errors
from cpo_ray.config import RunConfig
from cpo_ray.sampling.actor_pools import SAMPLING_ACTOR
from cpo_ray.sampling.dataset import sampled_units
from cpo_ray.sampling.reference_model import Reference
from cpo_ray.sampling.units import Unit, iterate_units, read_units, write_units

DRAWN = "drawn"  # folder of the units between the phases, below that of the unfinished groups


def sample_first(
    config: RunConfig,
    reference: Reference,
    draw: Callable[[int], Unit],
    starts: Sequence[int],
    folder: Path,
    on_rows: Callable[[int], None],
) -> Callable[[int], Unit]:
    """Sample the units that start at rows `starts`, and return the function that reads one from `folder`.

    Units that are there already are kept. The engines are stopped when this returns. on_rows(n): n more rows are sampled.
    """
    missing = [start for start in starts if not unit_file(folder, start).is_file()]
    on_rows(sum(len(read_drawn(folder, start)["groups"]) for start in starts if start not in missing))
    if missing:
        units = sampled_units(config, reference, draw, missing)
        with plain_errors(SAMPLING_ACTOR), contextlib.closing(iterate_units(units)) as sampled:
            for unit in sampled:
                write_table(unit_file(folder, unit["start"]), write_units([unit]))
                on_rows(len(unit["groups"]))

    def read(start: int) -> Unit:
        return read_drawn(folder, start)

    return read


def unit_file(folder: Path, start: int) -> Path:
    """The file of the unit that starts at a row."""
    return folder / f"unit-{start:08d}.parquet"


def read_drawn(folder: Path, start: int) -> Unit:
    """The unit that starts at a row."""
    (unit,) = read_units(pq.read_table(unit_file(folder, start)))
    return unit
