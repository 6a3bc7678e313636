"""The stage `sampling`: every training row becomes a group.

`dataset.py` is the Ray Data pipeline that units of rows stream through; finished units are written in shards here.
`unhelpful` negatives are requested from their API before that, in `negatives/unhelpful.py`.
"""

import contextlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from cpo_ray.artifacts import STATS, Summary, read_table, write_json, write_table
from cpo_ray.cluster.raydata import plain_errors
from cpo_ray.config import RunConfig
from cpo_ray.inference.embedding import check_embedder
from cpo_ray.records import GROUP_SCHEMA, SCORED_GROUP_SCHEMA
from cpo_ray.sampling.actor_pools import SAMPLING_ACTOR, with_absolute_paths
from cpo_ray.sampling.dataset import finished_units, read_in_tasks, with_scores
from cpo_ray.sampling.negatives.registry import load_kinds
from cpo_ray.sampling.negatives.unhelpful import add_unhelpful
from cpo_ray.sampling.phases import DRAWN, sample_first
from cpo_ray.sampling.reference_model import Reference, candidate_limits, read_reference
from cpo_ray.sampling.responses import load_tokenizer
from cpo_ray.sampling.selected_examples import write_selected
from cpo_ray.sampling.selection import BatchPlan, Selection, select_rows
from cpo_ray.sampling.stats import DrawCounts, count_candidates, equal_share, warnings, with_metadata
from cpo_ray.sampling.units import Unit, draw_unit, iterate_units

if TYPE_CHECKING:
    from ray.data import Dataset

OnRows = Callable[[int], None]


@dataclass(frozen=True)
class GroupShard:
    """Consecutive rows start..stop-1 and the file that holds their groups."""

    path: Path
    start: int
    stop: int

    def rows_of(self, table: pa.Table) -> pa.Table:
        """The shard's rows of the table of all rows."""
        return table.slice(self.start, self.stop - self.start)


@dataclass(frozen=True)
class PhaseHooks:
    """For sampling in phases. on_rows(n): n more rows are sampled. then: called after the last, to wait for resources."""

    on_rows: OnRows = lambda _: None
    then: Callable[[], None] = lambda: None


def make_groups(
    config: RunConfig,
    data: Path,
    reference: Path,
    out: Path,
    on_rows: OnRows,
    *,
    split: str = "train",
    phases: PhaseHooks = PhaseHooks(),
) -> Summary:
    """Write `out/part-*.parquet` (GROUP_SCHEMA, rows in the order of the split), `out/selected/` and `out/stats.json`.

    data: the data artifact; its split `split` is used. reference: a Hugging Face directory with a tokenizer. Finished shards
    in `out` are kept. on_rows(n): called when n more rows are done. phases: used with `sampling.in_phases`. Ray must be
    initialised.

    Raises DataError for a row that cannot become a group (see `select_rows`), ConfigError for a bad configuration, ClusterError
    for a cluster that is too small, ServiceError if the API of unhelpful negatives fails permanently.
    """
    config = with_absolute_paths(config)
    model, selection, unhelpful = prepare(config, data / split, reference, out.parent)
    shards = plan_shards(out, len(selection.table), config.sampling.shard_rows)
    missing = [shard for shard in shards if not is_finished(shard.path, shard.rows_of(selection.table))]
    kept = sum(shard.stop - shard.start for shard in shards if shard not in missing)
    if kept:
        on_rows(kept)
    counts = DrawCounts()
    if missing:
        starts = [row for shard in missing for row in range(shard.start, shard.stop, config.sampling.batch_rows)]
        schema = SCORED_GROUP_SCHEMA if config.data.has_answers else GROUP_SCHEMA
        units = groups_dataset(config, selection, model, starts, out / DRAWN, phases)
        counts = write_shards(units, missing, model.eos, on_rows, schema)
    if (out / DRAWN).exists():
        shutil.rmtree(out / DRAWN)
    write_selected(selection.table, out)
    return _summarize(config, selection, shards, out, counts, unhelpful)


def prepare(
    config: RunConfig, rows: Path, reference: Path, folder: Path, batches: BatchPlan | None = None
) -> tuple[Reference, Selection, Summary]:
    """What comes before any actor starts: the reference, the rows with unhelpful negatives, and a summary of requesting those.

    rows: examples. folder: where the answers of the API are kept. batches: see `select_rows`.
    """
    load_kinds(config.sampling)  # report errors in the user's kinds first
    check_embedder(config.sampling.embedder)
    model = read_reference(reference.resolve())
    selection = select_rows(read_table(rows), config, model.context, model.eos, batches, model.special)
    if not config.sampling.negatives.unhelpful:
        return model, selection, {}
    tokenizer, answers = load_tokenizer(model.path), folder / "unhelpful.answers"
    return model, *add_unhelpful(selection, config, tokenizer, answers, batches)


def plan_shards(out: Path, rows: int, shard_rows: int) -> list[GroupShard]:
    """The shards of `rows` rows. Deletes files in `out` that belong to another plan."""
    shards = [
        GroupShard(out / f"part-{number:05d}.parquet", start, min(start + shard_rows, rows))
        for number, start in enumerate(range(0, rows, shard_rows))
    ]
    delete_stray_shards(out, {shard.path for shard in shards})
    return shards


def delete_stray_shards(out: Path, shards: set[Path]) -> None:
    """Delete the Parquet files in `out` that are not in `shards`."""
    for stray in set(out.glob("*.parquet")) - shards:
        stray.unlink()


def groups_dataset(
    config: RunConfig,
    selection: Selection,
    reference: Reference,
    starts: Sequence[int],
    drawn: Path,
    phases: PhaseHooks,
) -> "Dataset":
    """The finished units that start at rows `starts`. drawn: folder of the units between two phases."""
    draw = unit_drawer(config, selection, reference)
    if not config.sampling.in_phases or not config.sampling.samples:
        return finished_units(config, reference, draw, starts)
    read = sample_first(config, reference, draw, starts, drawn, phases.on_rows)
    phases.then()
    return with_scores(read_in_tasks(read, starts), config, reference)


def unit_drawer(config: RunConfig, selection: Selection, reference: Reference) -> Callable[[int], Unit]:
    """A function that draws the unit of rows start, start + 1, ... Ray must be initialised."""
    import ray

    table = ray.put(selection.table)  # the function must not hold the table
    sampling, seed, max_tokens = config.sampling, config.seed, config.data.max_response_tokens

    def draw(start: int) -> Unit:
        draws, limits = load_kinds(sampling), candidate_limits(reference, max_tokens)
        return draw_unit(ray.get(table), start, sampling, seed, draws, limits)

    return draw


def write_shards(
    units: "Dataset", shards: Sequence[GroupShard], eos: int, on_rows: OnRows, schema: pa.Schema = GROUP_SCHEMA
) -> DrawCounts:
    """Write each shard as soon as all its rows are finished. Only unfinished shards are in memory.

    Returns the work for all of them; each shard keeps its own redraws in its metadata.
    """
    unfinished: dict[GroupShard, list[Unit]] = {shard: [] for shard in shards}
    counts = DrawCounts()
    with plain_errors(SAMPLING_ACTOR), contextlib.closing(iterate_units(units)) as finished:
        for unit in finished:
            counts.add(unit["work"])
            shard = next(shard for shard in unfinished if shard.start <= unit["start"] < shard.stop)
            unfinished[shard].append(unit)
            if sum(len(unit["groups"]) for unit in unfinished[shard]) == shard.stop - shard.start:
                _write_shard(shard, unfinished.pop(shard), eos, schema)
            on_rows(len(unit["groups"]))
    return counts


def _write_shard(shard: GroupShard, units: list[Unit], eos: int, schema: pa.Schema) -> None:
    counts = DrawCounts()
    for unit in units:
        counts.add(unit["work"])
    groups = [group for unit in sorted(units, key=lambda unit: unit["start"]) for group in unit["groups"]]
    table = pa.Table.from_pylist(groups, schema=schema)
    write_table(shard.path, with_metadata(table, counts.redraws, eos))


def is_finished(shard: Path, rows: pa.Table) -> bool:
    """Whether the shard's file exists and holds exactly these rows, compared by id."""
    return shard.is_file() and bool(pq.read_table(shard, columns=["id"])["id"].equals(rows["id"]))


def _summarize(
    config: RunConfig,
    selection: Selection,
    shards: Sequence[GroupShard],
    out: Path,
    counts: DrawCounts,
    unhelpful: Summary,
) -> Summary:
    speeds = counts.speeds
    if unhelpful.get("tokens_per_second") is not None:
        speeds["unhelpful"] = unhelpful["tokens_per_second"]
    stats = count_candidates((pq.read_table(shard.path) for shard in shards), speeds)
    write_json(out / STATS, stats)
    summary: Summary = {
        "rows": len(selection.table),
        "candidates": config.candidates,
        "tokens": sum(kind["tokens"] for kind in stats.values()),
        "redraws": sum(kind["redraws"] for kind in stats.values()),
        "left_out": sum(selection.left_out.values()),
        "truncated_prompts": selection.truncated_prompts,
        "golds_without_eos": stats["gold"]["without_eos"],
        "warnings": warnings(stats, config.sampling.sampled, selection.left_out, selection.truncated_prompts),
    }
    for kind in config.sampling.sampled:
        summary[f"{kind}_equal_to_gold"] = round(equal_share(stats, kind), 4)
    if config.training.precision != "fp32":
        summary["scoring_noise"] = measured_noise(shards)
    return summary | ({"unhelpful": unhelpful} if unhelpful else {})


def measured_noise(shards: Sequence[GroupShard]) -> float | None:
    """The rounding noise of the scores, nat per sqrt(token), rounded; None if shards of an older version do not have it."""
    from cpo_ray.objective.noise import scoring_noise
    from cpo_ray.sampling.scoring import SPREAD_ROWS

    tables = [pq.read_table(shard.path) for shard in shards if shard.start < SPREAD_ROWS]
    groups = [group for table in tables if "ref_spread" in table.column_names for group in table.to_pylist()]
    noise = scoring_noise([group["ref_spread"] for group in groups], [group["candidate_ids"] for group in groups])
    return None if noise is None else round(noise, 4)
