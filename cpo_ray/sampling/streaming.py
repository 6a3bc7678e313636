"""Sampling during training: a stream of units, one per optimizer step, in order.

The rows of a unit, its seed and the policy that it is sampled from depend on the step alone, so training that resumes from a
checkpoint gets the same groups.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from cpo_ray.artifacts import STATS, Summary, write_json, write_table
from cpo_ray.cluster.raydata import LOGICAL_CPUS, plain_errors
from cpo_ray.config import RunConfig
from cpo_ray.inference.policy_snapshots import PolicySnapshots
from cpo_ray.records import GROUP_SCHEMA, SCORED_GROUP_SCHEMA, Group
from cpo_ray.sampling.actor_pools import SAMPLING_ACTOR, with_absolute_paths
from cpo_ray.sampling.dataset import finished_units
from cpo_ray.sampling.groups import prepare
from cpo_ray.sampling.negatives.registry import load_kinds
from cpo_ray.sampling.reference_model import Reference, candidate_limits
from cpo_ray.sampling.seeding import draw_seed
from cpo_ray.sampling.selected_examples import write_selected
from cpo_ray.sampling.stats import DrawCounts, count_candidates, warnings, with_metadata
from cpo_ray.sampling.units import Unit, draw_unit, read_units

if TYPE_CHECKING:
    from ray.data import Dataset

RECORDED = 16  # steps whose units are kept for the report

RowsOfStep = Callable[[int], list[int]]  # step -> numbers of its rows


@dataclass(frozen=True)
class Stream:
    """What the first training worker needs to start the stream, again after every restart."""

    config: RunConfig
    reference: Reference
    table: Any  # ObjectRef of the selected rows
    truncated_prompts: int  # number of prompts that were cut
    left_out: dict[str, int]  # reason -> rows that cannot become groups
    order: RowsOfStep
    snapshots: PolicySnapshots
    recorded: Path  # folder of the units that are kept

    def groups(self, first: int) -> Generator[tuple[int, list[Group]], None, None]:
        """(step, its groups) from step `first` on. The actors start with the first item and stop when the generator is closed.

        Raises DataError and ConfigError for rows that cannot be sampled, ClusterError for actors that die repeatedly.
        """
        (units,) = self.dataset(first).streaming_split(1)  # runs the executor in a process of its own
        with plain_errors(SAMPLING_ACTOR), contextlib.closing(_iterate(units)) as batches:
            for batch in batches:
                for unit in read_units(batch):
                    yield unit["start"], unit["groups"]

    def dataset(self, first: int) -> "Dataset":
        """The units of step `first` to the last step, in order: a lazy Ray Dataset of UNIT_SCHEMA."""
        units = finished_units(self.config, self.reference, self.draw, range(first, self.snapshots.steps))
        units = units.map_batches(self.record, batch_size=1, batch_format="pyarrow", num_cpus=LOGICAL_CPUS)
        units.context.execution_options.preserve_order = True
        return units

    def draw(self, step: int) -> Unit:
        """Draw the unit of a step, after its policy snapshot is published."""
        import ray

        policy = self.snapshots.wait_for(step)
        sampling, seed = self.config.sampling, draw_seed(self.config.seed, str(step), "stream", 0)
        rows = ray.get(self.table).take(self.order(step))
        limits = candidate_limits(self.reference, self.config.data.max_response_tokens)
        unit = draw_unit(rows, 0, sampling, seed, load_kinds(sampling), limits)
        return {**unit, "start": step, "policy": policy}

    def record(self, batch: pa.Table) -> pa.Table:
        """Write the units of about RECORDED steps, evenly spaced over the training."""
        every = max(1, self.snapshots.steps // RECORDED)
        for number, step in enumerate(batch["start"].to_pylist()):
            if step % every == 0:
                write_table(self.recorded / f"step-{step:08d}.parquet", batch.slice(number, 1))
        return batch


def open_stream(
    config: RunConfig, data: Path, reference: Path, folder: Path, order: Callable[[int], RowsOfStep]
) -> Stream:
    """A stream over the training rows of the data artifact, for the steps of `config.training`.

    reference: a Hugging Face directory with a tokenizer. folder: for this stream alone, on storage shared by all nodes.
    order(n): which of n rows each step takes. Ray must be initialised. Raises the same errors as `make_groups` does before
    its actors start.
    """
    import ray

    config = with_absolute_paths(config)
    batch = config.sampling.model_copy(update={"batch_rows": config.training.prompts_per_step})
    config = config.model_copy(update={"sampling": batch})

    def batches(rows: int) -> Iterator[tuple[list[int], int]]:
        rows_of = order(rows)
        for step in range(config.training.steps):
            numbers = rows_of(step)
            yield numbers, numbers[0]

    model, selection, _ = prepare(config, data / "train", reference, folder.parent, batches)
    for name in ("policies", "recorded"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return Stream(
        config=config,
        reference=model,
        table=ray.put(selection.table),
        truncated_prompts=selection.truncated_prompts,
        left_out=selection.left_out,
        order=order(len(selection.table)),
        snapshots=PolicySnapshots(
            folder / "policies",
            config.sampling.refresh_steps,
            config.training.steps,
            moves_reference=config.sampling.refresh_reference,
        ),
        recorded=folder / "recorded",
    )


def write_recorded(stream: Stream, out: Path) -> Summary:
    """The recorded units as a groups artifact: `out/part-00000.parquet` and `out/stats.json`; all rows in `out/selected/`."""
    import ray

    units = [unit for file in sorted(stream.recorded.glob("*.parquet")) for unit in read_units(pq.read_table(file))]
    counts = DrawCounts()
    for unit in units:
        counts.add(unit["work"])
    schema = SCORED_GROUP_SCHEMA if stream.config.data.has_answers else GROUP_SCHEMA
    groups = pa.Table.from_pylist([group for unit in units for group in unit["groups"]], schema=schema)
    write_table(out / "part-00000.parquet", with_metadata(groups, counts.redraws, stream.reference.eos))
    write_selected(ray.get(stream.table), out)
    stats = count_candidates([groups], counts.speeds)
    write_json(out / STATS, stats)
    return {
        "rows": len(groups),
        "of steps": [unit["start"] + 1 for unit in units],
        "candidates": stream.config.candidates,
        "tokens": sum(kind["tokens"] for kind in stats.values()),
        "redraws": sum(kind["redraws"] for kind in stats.values()),
        "golds_without_eos": stats["gold"]["without_eos"] if stats else 0,
        "warnings": warnings(stats, stream.config.sampling.sampled, stream.left_out, stream.truncated_prompts),
    }


def _iterate(units: Any) -> Generator[pa.Table, None, None]:
    """Batches without prefetching: with it, Ray Data would hold a batch back until the next one, which may wait for ours."""
    yield from units.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0)
