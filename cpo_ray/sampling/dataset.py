"""The Ray Data pipeline of a unit: draw -> vLLM (autoregressive) -> scorer (meanfield, log-probs) -> ranker.

All actors work at the same time, or in two phases (`sampling/phases.py`): the first two steps, then the others.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from cpo_ray.cluster.raydata import LOGICAL_CPUS, configure
from cpo_ray.cluster.resources import engine_gpus, pool_gpus
from cpo_ray.config import RunConfig
from cpo_ray.sampling.actor_pools import actor_options
from cpo_ray.sampling.reference_model import Reference
from cpo_ray.sampling.units import Unit, write_units

if TYPE_CHECKING:
    from ray.data import Dataset

DRAW_TASKS = 2  # concurrent tasks that draw units


def finished_units(
    config: RunConfig, reference: Reference, draw: Callable[[int], Unit], starts: Sequence[int]
) -> "Dataset":
    """The units that start at rows `starts`, scored and ranked, in any order: a lazy Dataset of UNIT_SCHEMA.

    draw: draws the unit that starts at a row; runs in a Ray task.
    """
    return with_scores(sampled_units(config, reference, draw, starts), config, reference)


def sampled_units(
    config: RunConfig, reference: Reference, draw: Callable[[int], Unit], starts: Sequence[int]
) -> "Dataset":
    """The units with all negatives except the meanfield ones, neither scored nor ranked."""
    units = read_in_tasks(draw, starts)
    return with_engine(units, config, reference) if config.sampling.samples else units


def read_in_tasks(draw: Callable[[int], Unit], starts: Sequence[int]) -> "Dataset":
    """The units that `draw` returns for rows `starts`, one block each."""
    import ray
    from ray.data import TaskPoolStrategy

    def draw_batch(batch: pa.Table) -> pa.Table:
        return write_units([draw(start) for start in batch["start"].to_pylist()])

    units = ray.data.from_items([{"start": start} for start in starts], override_num_blocks=len(starts))
    configure(units)
    tasks = TaskPoolStrategy(size=DRAW_TASKS)
    return units.map_batches(draw_batch, batch_size=1, batch_format="pyarrow", num_cpus=LOGICAL_CPUS, compute=tasks)


def with_scores(units: "Dataset", config: RunConfig, reference: Reference) -> "Dataset":
    """The units with meanfield negatives, scored and ranked."""
    from cpo_ray.sampling.ranking import Ranker
    from cpo_ray.sampling.scoring import Scorer

    scorer, ranker = (config, reference.path, reference.eos), (config, reference.path)
    for actor, arguments, pool in (
        (Scorer, scorer, config.sampling.scorers),
        (Ranker, ranker, config.sampling.rankers),
    ):
        options = actor_options(config, pool, pool_gpus(config, pool))
        units = units.map_batches(actor, fn_constructor_args=arguments, batch_size=1, **options)
    return units


def with_engine(units: "Dataset", config: RunConfig, reference: Reference) -> "Dataset":
    """The units with autoregressive negatives, one unit per call of a vLLM actor.

    An actor has enough concurrent calls that `2 * engine.max_sequences` sequences wait while a unit's last ones finish.
    """
    from cpo_ray.sampling.vllm_sampler import VllmSampler

    sampling = config.sampling
    sequences = sampling.batch_rows * sampling.samples
    calls = 1 + math.ceil(2 * sampling.engine.max_sequences / sequences)
    return units.map_batches(
        VllmSampler,
        fn_constructor_args=(config, reference.path, reference.eos, reference.other_eos),
        batch_size=1,
        **actor_options(config, sampling.engines, engine_gpus(config), calls=calls),
    )
