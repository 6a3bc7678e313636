"""The stage `sampling`: every training row becomes a group. Ray Data streams units of rows through the actors.

rows -> draw (gold, batch, truncation) -> engine (autoregressive) -> scorer (meanfield, log-probs) -> ranker -> shards
"""

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from cpo_ray.artifacts import Summary, read_table, write_json, write_table
from cpo_ray.config import RunConfig
from cpo_ray.errors import ClusterError, ConfigError, CpoRayError
from cpo_ray.records import GROUP_SCHEMA, Group
from cpo_ray.sampling.selection import Selection, select_rows
from cpo_ray.sampling.stats import count_candidates, equal_share, warnings
from cpo_ray.sampling.units import draw_unit, read_units, write_units

if TYPE_CHECKING:
    from ray.data import ActorPoolStrategy, Dataset

OnRows = Callable[[int], None]
LOGICAL_CPUS = 0.5  # of each actor on a machine without GPUs: they wait for each other


@dataclass(frozen=True)
class Reference:
    """The reference model's directory, and what its files say."""

    path: Path
    context: int  # positions
    eos: int


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
    cannot run.
    """
    config, reference = _with_absolute_paths(config), reference.resolve()
    model = read_reference(reference)
    selection = select_rows(read_table(data / split), config, model.context, model.eos)
    shards = plan_shards(out, len(selection.table), config.sampling.shard_rows)
    missing = [shard for shard in shards if not _is_finished(shard, selection.table)]
    kept = sum(shard.stop - shard.start for shard in shards if shard not in missing)
    if kept:
        on_rows(kept)
    if missing:
        starts = [row for shard in missing for row in range(shard.start, shard.stop, config.sampling.batch_rows)]
        write_shards(groups_dataset(config, selection, model, starts), missing, on_rows)
    return _summarize(config, selection, shards, out)


def read_reference(path: Path) -> Reference:
    """What the stage needs to know before any actor starts. Raises ConfigError for a tokenizer without EOS."""
    from transformers import AutoConfig, AutoTokenizer

    eos = AutoTokenizer.from_pretrained(path, trust_remote_code=False).eos_token_id
    if eos is None:
        raise ConfigError(f"the tokenizer in {path} has no EOS token")
    context = AutoConfig.from_pretrained(path, trust_remote_code=False).max_position_embeddings
    return Reference(path, context, eos)


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
    import ray
    from ray.data import TaskPoolStrategy

    from cpo_ray.sampling.ranking import Ranker
    from cpo_ray.sampling.scoring import Scorer

    table = ray.put(selection.table)

    def draw(batch: pa.Table) -> pa.Table:
        rows = ray.get(table)
        return write_units([draw_unit(rows, start, selection.prompt_tokens, config) for start in _starts(batch)])

    pool = _actor_options(config)
    units = ray.data.from_items([{"start": start} for start in starts], override_num_blocks=len(starts))
    _configure(units)
    units = units.map_batches(
        draw, batch_size=1, batch_format="pyarrow", num_cpus=LOGICAL_CPUS, compute=TaskPoolStrategy(size=2)
    )
    if config.sampling.negatives.autoregressive:
        units = _with_engine(units, config, reference)
    units = units.map_batches(Scorer, fn_constructor_args=(config, reference.path), batch_size=1, **pool)
    return units.map_batches(Ranker, fn_constructor_args=(config, reference.path), batch_size=1, **pool)


def write_shards(units: "Dataset", shards: Sequence[Shard], on_rows: OnRows) -> None:
    """Write each shard once all its rows are there, in order. Holds only the shards that are under way."""
    groups: dict[Shard, dict[int, list[Group]]] = {shard: {} for shard in shards}
    with _plain_errors(), contextlib.closing(_finished_units(units)) as finished:
        for start, members in finished:
            shard = next(shard for shard in groups if shard.start <= start < shard.stop)
            groups[shard][start] = members
            if sum(map(len, groups[shard].values())) == shard.stop - shard.start:
                in_order = [group for _, unit in sorted(groups.pop(shard).items()) for group in unit]
                write_table(shard.path, pa.Table.from_pylist(in_order, schema=GROUP_SCHEMA))
            on_rows(len(members))


def _finished_units(units: "Dataset") -> Generator[tuple[int, list[Group]], None, None]:
    for batch in units.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=1):
        for unit in read_units(batch):
            yield unit["start"], unit["groups"]


def _with_engine(units: "Dataset", config: RunConfig, reference: Reference) -> "Dataset":
    """Sample enough units at a time to keep the engine's batch full twice over."""
    from cpo_ray.sampling.engine import Engine

    sampling = config.sampling
    sequences = sampling.batch_rows * sampling.negatives.autoregressive
    options = _actor_options(config)
    if "num_gpus" in options:
        options["num_gpus"] = sampling.engine.tensor_parallel
    return units.map_batches(
        Engine,
        fn_constructor_args=(config, reference.path, reference.eos),
        batch_size=max(1, 2 * sampling.engine.max_sequences // sequences),
        **options,
    )


def _actor_options(config: RunConfig) -> dict[str, Any]:
    """One actor of each sort on a machine without GPUs; with GPUs, as many as the work can use and the cluster has."""
    import ray
    from ray.data import ActorPoolStrategy

    each = config.cluster.gpus_per_worker
    options: dict[str, Any] = {"batch_format": "pyarrow", "udf_modifying_row_count": False}
    if not each:
        return options | {"compute": ActorPoolStrategy(size=1), "num_cpus": LOGICAL_CPUS}
    there = ray.cluster_resources().get("GPU", 0.0)
    engine = config.sampling.engine.tensor_parallel if config.sampling.negatives.autoregressive else 0
    if there < 2 * each + engine:
        raise ClusterError(
            f"the cluster has {there:g} GPUs; sampling needs {2 * each + engine:g}: scorer {each:g} + embedder {each:g} "
            f"(cluster.gpus_per_worker) + engine {engine} (sampling.engine.tensor_parallel)"
        )
    return options | {"compute": _pool(int(there)), "num_gpus": each}


def _pool(most: int) -> "ActorPoolStrategy":
    from ray.data import ActorPoolStrategy

    return ActorPoolStrategy(min_size=1, max_size=max(1, most))


def _configure(units: "Dataset") -> None:
    """No progress bars or announcements of Ray Data's own; an error keeps its type on the way from actor to driver."""
    units.context.enable_progress_bars = False
    units.context.enable_operator_progress_bars = False
    units.context.print_on_execution_start = False
    units.context.raise_original_map_exception = True


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Let an error of ours that an actor raised reach the user as itself."""
    from ray.exceptions import RayActorError, RayTaskError

    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, CpoRayError):
            raise error.cause from None
        raise
    except RayActorError as error:
        raise ClusterError(f"an actor of the sampling stage could not be kept alive: {error}") from error


def _with_absolute_paths(config: RunConfig) -> RunConfig:
    """Actors have a working directory of their own."""
    embedder = Path(config.sampling.embedder)
    if not embedder.is_dir():
        return config
    sampling = config.sampling.model_copy(update={"embedder": str(embedder.resolve())})
    return config.model_copy(update={"sampling": sampling})


def _is_finished(shard: Shard, table: pa.Table) -> bool:
    """Whether the shard's file is there and holds these very rows."""
    if not shard.path.is_file():
        return False
    ids = pq.read_table(shard.path, columns=["id"])["id"]
    return bool(ids.equals(table["id"].slice(shard.start, shard.stop - shard.start)))


def _starts(batch: pa.Table) -> list[int]:
    return batch["start"].to_pylist()


def _summarize(config: RunConfig, selection: Selection, shards: Sequence[Shard], out: Path) -> Summary:
    stats = count_candidates(pq.read_table(shard.path) for shard in shards)
    write_json(out / "stats.json", stats)
    summary: Summary = {
        "rows": len(selection.table),
        "candidates": config.candidates,
        "tokens": sum(kind["tokens"] for kind in stats.values()),
        "left_out": sum(selection.left_out.values()),
        "truncated_prompts": selection.truncated_prompts,
        "warnings": warnings(stats, selection.left_out, selection.truncated_prompts),
    }
    if config.sampling.negatives.autoregressive:
        summary["autoregressive_equal_to_gold"] = round(equal_share(stats, "autoregressive"), 4)
    return summary
