"""Sampling while training goes on: a stream of units, one for each optimizer step, in order.

A unit is drawn for its step: its rows, its seed and the policy that it is sampled from depend on the step alone, so a
training that is continued sees what it would have seen.
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
from cpo_ray.inference.policy_snapshots import PolicyShelf
from cpo_ray.records import GROUP_SCHEMA, Group
from cpo_ray.sampling.actor_pools import SAMPLING_ACTOR, with_absolute_paths
from cpo_ray.sampling.dataset import finished_units
from cpo_ray.sampling.groups import prepare
from cpo_ray.sampling.negatives.registry import load_kinds
from cpo_ray.sampling.reference_model import Reference, draw_limits
from cpo_ray.sampling.seeding import draw_seed
from cpo_ray.sampling.stats import Tally, count_candidates, warnings, with_redraws
from cpo_ray.sampling.units import Unit, draw_unit, read_units

if TYPE_CHECKING:
    from ray.data import Dataset

RECORDED = 16  # steps whose units are kept to look at

Order = Callable[[int], list[int]]  # step -> numbers of its rows


@dataclass(frozen=True)
class Stream:
    """What the first training worker opens, again after every restart."""

    config: RunConfig
    reference: Reference
    table: Any  # reference to the selected rows in Ray's object store
    prompt_tokens: int  # a longer prompt keeps its last ones
    truncated_prompts: int  # how many do
    left_out: dict[str, int]  # reason -> rows that no group can be made of
    order: Order
    shelf: PolicyShelf
    recorded: Path  # folder

    def groups(self, first: int) -> Generator[tuple[int, list[Group]], None, None]:
        """(step, its groups) from step `first` on. The actors start with the first and end with the generator.

        Raises DataError and ConfigError for what cannot be sampled, ClusterError for actors that keep dying.
        """
        (units,) = self.dataset(first).streaming_split(1)  # its executor has a process of its own
        with plain_errors(SAMPLING_ACTOR), contextlib.closing(_batches(units)) as batches:
            for batch in batches:
                for unit in read_units(batch):
                    yield unit["start"], unit["groups"]

    def dataset(self, first: int) -> "Dataset":
        """The units of the steps from `first` to the last, in order: a lazy Ray Dataset of UNIT_SCHEMA."""
        units = finished_units(self.config, self.reference, self.draw, range(first, self.shelf.steps))
        units = units.map_batches(self.record, batch_size=1, batch_format="pyarrow", num_cpus=LOGICAL_CPUS)
        units.context.execution_options.preserve_order = True
        return units

    def draw(self, step: int) -> Unit:
        """Begin the unit of a step, once the policy that it is sampled from is there."""
        import ray

        policy = self.shelf.wait_at(step)
        config = self.config.model_copy(update={"seed": draw_seed(self.config.seed, str(step), "stream", 0)})
        rows = ray.get(self.table).take(self.order(step))
        limits = draw_limits(config, self.reference)
        unit = draw_unit(rows, 0, self.prompt_tokens, config, load_kinds(config.sampling), limits)
        return {**unit, "start": step, "policy": policy}

    def record(self, batch: pa.Table) -> pa.Table:
        """Keep the units of some steps, spread over the training."""
        every = max(1, self.shelf.steps // RECORDED)
        for number, step in enumerate(batch["start"].to_pylist()):
            if step % every == 0:
                write_table(self.recorded / f"step-{step:08d}.parquet", batch.slice(number, 1))
        return batch


def open_stream(config: RunConfig, data: Path, reference: Path, folder: Path, order: Callable[[int], Order]) -> Stream:
    """A stream over the training rows of the data artifact, for the steps of `config.training`.

    reference: a Hugging Face directory with its tokenizer. folder: the stream's own, on a disk that all nodes see. order(n):
    which of n rows each step takes. Ray must be initialised. Raises what `make_groups` raises before its actors start.
    """
    import ray

    config = with_absolute_paths(config)
    batch = config.sampling.model_copy(update={"batch_rows": config.training.prompts_per_step})
    config = config.model_copy(update={"sampling": batch})

    def batches(rows: int) -> Iterator[tuple[list[int], int]]:
        at = order(rows)
        for step in range(config.training.steps):
            taken = at(step)
            yield taken, taken[0]

    model, selection, _ = prepare(config, data / "train", reference, folder.parent, batches)
    for each in ("policies", "recorded"):
        (folder / each).mkdir(parents=True, exist_ok=True)
    return Stream(
        config=config,
        reference=model,
        table=ray.put(selection.table),
        prompt_tokens=selection.prompt_tokens,
        truncated_prompts=selection.truncated_prompts,
        left_out=selection.left_out,
        order=order(len(selection.table)),
        shelf=PolicyShelf(folder / "policies", config.sampling.refresh_steps, config.training.steps),
        recorded=folder / "recorded",
    )


def write_recorded(stream: Stream, out: Path) -> Summary:
    """The recorded units as a groups artifact: `out/part-00000.parquet` and `out/stats.json`."""
    units = [unit for file in sorted(stream.recorded.glob("*.parquet")) for unit in read_units(pq.read_table(file))]
    tally = Tally()
    for unit in units:
        tally.add(unit["work"])
    groups = pa.Table.from_pylist([group for unit in units for group in unit["groups"]], schema=GROUP_SCHEMA)
    write_table(out / "part-00000.parquet", with_redraws(groups, tally.redraws))
    stats = count_candidates([groups], tally.speeds)
    write_json(out / STATS, stats)
    return {
        "rows": len(groups),
        "of steps": [unit["start"] + 1 for unit in units],
        "candidates": stream.config.candidates,
        "tokens": sum(kind["tokens"] for kind in stats.values()),
        "redraws": sum(kind["redraws"] for kind in stats.values()),
        "warnings": warnings(stats, stream.left_out, stream.truncated_prompts),
    }


def _batches(units: Any) -> Generator[pa.Table, None, None]:
    """Each as soon as it is there: with prefetching a batch is held back until the next one comes, which may wait for us."""
    yield from units.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0)
