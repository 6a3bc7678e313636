"""The stage `sampling`: every training row becomes a group. Ray Data streams units of rows through the actors.

rows -> draw (gold, batch, truncation, kinds of the user) -> engine (autoregressive) -> scorer (meanfield, log-probs)
     -> ranker -> shards

Unhelpful negatives are asked for before that: see `unhelpful.py`.
"""

import contextlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from cpo_ray.artifacts import STATS, Summary, read_table, write_json, write_table
from cpo_ray.config import RunConfig
from cpo_ray.errors import ConfigError
from cpo_ray.raydata import LOGICAL_CPUS, configure, plain_errors
from cpo_ray.records import GROUP_SCHEMA
from cpo_ray.sampling.kinds import Limits, load_kinds
from cpo_ray.sampling.pools import SAMPLING_ACTOR, actor_options, with_absolute_paths
from cpo_ray.sampling.responses import encode_responses, load_tokenizer
from cpo_ray.sampling.selection import Selection, select_rows
from cpo_ray.sampling.source import Tokens
from cpo_ray.sampling.stats import Tally, count_candidates, equal_share, warnings, with_redraws
from cpo_ray.sampling.unhelpful import add_unhelpful
from cpo_ray.sampling.units import Unit, draw_unit, read_units, write_units

if TYPE_CHECKING:
    from ray.data import Dataset

OnRows = Callable[[int], None]


@dataclass(frozen=True)
class Reference:
    """The reference model's directory, and what its files say."""

    path: Path
    context: int  # positions
    eos: int
    vocabulary: int  # tokens that it has an embedding for


@dataclass(frozen=True)
class Shard:
    """Consecutive rows start..stop-1 and the file they go to."""

    path: Path
    start: int
    stop: int


def make_groups(
    config: RunConfig, data: Path, reference: Path, out: Path, on_rows: OnRows, *, split: str = "train"
) -> Summary:
    """Write `out/part-*.parquet` (GROUP_SCHEMA, rows in the order of the split) and `out/stats.json`.

    data: the data artifact, of which `split` is taken. reference: a Hugging Face directory with its tokenizer. Shards
    already in `out` are kept.
    `on_rows(n)` is called as n more rows are done. Ray must be initialised.

    Raises DataError for a row that cannot become a group (see `select_rows`), ConfigError and ClusterError for what
    cannot run, ServiceError where the API of unhelpful negatives fails for good.
    """
    config, reference = with_absolute_paths(config), reference.resolve()
    load_kinds(config.sampling)  # what is wrong with them is told before anything starts
    model = read_reference(reference)
    selection = select_rows(read_table(data / split), config, model.context, model.eos)
    asked: Summary = {}
    if config.sampling.negatives.unhelpful:
        journal = out.parent / "unhelpful.answers"
        selection, asked = add_unhelpful(selection, config, load_tokenizer(reference), journal)
    shards = plan_shards(out, len(selection.table), config.sampling.shard_rows)
    missing = [shard for shard in shards if not _is_finished(shard, selection.table)]
    kept = sum(shard.stop - shard.start for shard in shards if shard not in missing)
    if kept:
        on_rows(kept)
    tally = Tally()
    if missing:
        starts = [row for shard in missing for row in range(shard.start, shard.stop, config.sampling.batch_rows)]
        tally = write_shards(groups_dataset(config, selection, model, starts), missing, on_rows)
    return _summarize(config, selection, shards, out, tally, asked)


def read_reference(path: Path) -> Reference:
    """What the stage needs to know before any actor starts. Raises ConfigError for a tokenizer without EOS."""
    from transformers import AutoConfig, AutoTokenizer

    eos = AutoTokenizer.from_pretrained(path, trust_remote_code=False).eos_token_id
    if eos is None:
        raise ConfigError(f"the tokenizer in {path} has no EOS token")
    model = AutoConfig.from_pretrained(path, trust_remote_code=False)
    return Reference(path, model.max_position_embeddings, eos, model.vocab_size)


def plan_shards(out: Path, rows: int, shard_rows: int) -> list[Shard]:
    """The shards of `rows` rows. Files in `out` that belong to another plan are deleted."""
    shards = [
        Shard(out / f"part-{number:05d}.parquet", start, min(start + shard_rows, rows))
        for number, start in enumerate(range(0, rows, shard_rows))
    ]
    for stray in set(out.glob("*.parquet")) - {shard.path for shard in shards}:
        stray.unlink()
    return shards


def groups_dataset(config: RunConfig, selection: Selection, reference: Reference, starts: Sequence[int]) -> "Dataset":
    """The units that begin at `starts`, finished, in whatever order they come: a lazy Ray Dataset of UNIT_SCHEMA."""
    from cpo_ray.sampling.ranking import Ranker
    from cpo_ray.sampling.scoring import Scorer

    units, each = sampled_units(config, selection, reference, starts), config.cluster.gpus_per_worker
    for actor, pool in ((Scorer, config.sampling.scorers), (Ranker, config.sampling.rankers)):
        options = actor_options(config, pool, each)
        units = units.map_batches(actor, fn_constructor_args=(config, reference.path), batch_size=1, **options)
    return units


def sampled_units(config: RunConfig, selection: Selection, reference: Reference, starts: Sequence[int]) -> "Dataset":
    """The units with their negatives but the meanfield ones, neither scored nor ranked."""
    import ray
    from ray.data import TaskPoolStrategy

    table, prompt_tokens = ray.put(selection.table), selection.prompt_tokens  # the function must not hold the table

    def draw(batch: pa.Table) -> pa.Table:
        rows, draws, limits = ray.get(table), load_kinds(config.sampling), _limits(config, reference)
        return write_units([draw_unit(rows, start, prompt_tokens, config, draws, limits) for start in _starts(batch)])

    units = ray.data.from_items([{"start": start} for start in starts], override_num_blocks=len(starts))
    configure(units)
    units = units.map_batches(
        draw, batch_size=1, batch_format="pyarrow", num_cpus=LOGICAL_CPUS, compute=TaskPoolStrategy(size=2)
    )
    if config.sampling.negatives.autoregressive:
        units = _with_engine(units, config, reference)
    return units


def write_shards(units: "Dataset", shards: Sequence[Shard], on_rows: OnRows) -> Tally:
    """Write each shard once all its rows are there, in order. Holds only the shards that are under way.

    Returns the work that went into them; each shard keeps its own redraws in its metadata.
    """
    unfinished: dict[Shard, list[Unit]] = {shard: [] for shard in shards}
    tally = Tally()
    with plain_errors(SAMPLING_ACTOR), contextlib.closing(_finished_units(units)) as finished:
        for unit in finished:
            tally.add(unit["work"])
            shard = next(shard for shard in unfinished if shard.start <= unit["start"] < shard.stop)
            unfinished[shard].append(unit)
            if sum(len(unit["groups"]) for unit in unfinished[shard]) == shard.stop - shard.start:
                _write_shard(shard, unfinished.pop(shard))
            on_rows(len(unit["groups"]))
    return tally


def _write_shard(shard: Shard, units: list[Unit]) -> None:
    tally = Tally()
    for unit in units:
        tally.add(unit["work"])
    groups = [group for unit in sorted(units, key=lambda unit: unit["start"]) for group in unit["groups"]]
    write_table(shard.path, with_redraws(pa.Table.from_pylist(groups, schema=GROUP_SCHEMA), tally.redraws))


def _finished_units(units: "Dataset") -> Generator[Unit, None, None]:
    for batch in units.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=1):
        yield from read_units(batch)


def _with_engine(units: "Dataset", config: RunConfig, reference: Reference) -> "Dataset":
    """Sample enough units at a time to keep the engine's batch full twice over."""
    from cpo_ray.sampling.engine import Engine

    sampling = config.sampling
    sequences = sampling.batch_rows * sampling.negatives.autoregressive
    return units.map_batches(
        Engine,
        fn_constructor_args=(config, reference.path, reference.eos),
        batch_size=max(1, 2 * sampling.engine.max_sequences // sequences),
        **actor_options(config, sampling.engines, sampling.engine.tensor_parallel),
    )


def _is_finished(shard: Shard, table: pa.Table) -> bool:
    """Whether the shard's file is there and holds these very rows."""
    if not shard.path.is_file():
        return False
    ids = pq.read_table(shard.path, columns=["id"])["id"]
    return bool(ids.equals(table["id"].slice(shard.start, shard.stop - shard.start)))


def _starts(batch: pa.Table) -> list[int]:
    return batch["start"].to_pylist()


def _limits(config: RunConfig, reference: Reference) -> Limits:
    longest = config.data.max_response_tokens

    def encode(text: str) -> Tokens:
        return encode_responses(load_tokenizer(reference.path), [text], longest)[0]

    return Limits(longest, reference.eos, reference.vocabulary, encode)


def _summarize(
    config: RunConfig, selection: Selection, shards: Sequence[Shard], out: Path, tally: Tally, asked: Summary
) -> Summary:
    speeds = tally.speeds
    if asked.get("tokens_per_second") is not None:
        speeds["unhelpful"] = asked["tokens_per_second"]
    stats = count_candidates((pq.read_table(shard.path) for shard in shards), speeds)
    write_json(out / STATS, stats)
    summary: Summary = {
        "rows": len(selection.table),
        "candidates": config.candidates,
        "tokens": sum(kind["tokens"] for kind in stats.values()),
        "redraws": sum(kind["redraws"] for kind in stats.values()),
        "left_out": sum(selection.left_out.values()),
        "truncated_prompts": selection.truncated_prompts,
        "warnings": warnings(stats, selection.left_out, selection.truncated_prompts),
    }
    if config.sampling.negatives.autoregressive:
        summary["autoregressive_equal_to_gold"] = round(equal_share(stats, "autoregressive"), 4)
    return summary | ({"unhelpful": asked} if asked else {})
