"""Ranks existing groups with another embedder. Nothing is drawn or scored again."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from cpo_ray.artifacts import SELECTED, STATS, Artifact, Summary, read_table, write_json, write_table
from cpo_ray.cluster.raydata import LOGICAL_CPUS, configure, plain_errors
from cpo_ray.cluster.resources import pool_gpus
from cpo_ray.config import RunConfig
from cpo_ray.inference.embedding import check_embedder
from cpo_ray.records import ANSWER, CANDIDATE_KINDS, GROUP_SCHEMA, SCORED_GROUP_SCHEMA, Group
from cpo_ray.sampling.actor_pools import SAMPLING_ACTOR, actor_options, with_absolute_paths
from cpo_ray.sampling.groups import OnRows, delete_stray_shards, is_finished
from cpo_ray.sampling.ranking import Ranker
from cpo_ray.sampling.stats import count_candidates
from cpo_ray.sampling.units import empty_unit, read_units, write_units

if TYPE_CHECKING:
    from ray.data import Dataset

GOLD = CANDIDATE_KINDS[0]


def rerank(config: RunConfig, groups: Artifact, reference: Path, out: Path, on_rows: OnRows) -> Summary:
    """Write the groups artifact `groups` to `out` with `similarity` and `rank` of the configured embedder.

    Shards keep their bounds; shards in `out` that already hold the same rows are kept. reference: the model whose tokenizer
    decodes candidates. on_rows(n): called when n more rows are done. Ray must be initialised.
    """
    config, reference = with_absolute_paths(config), reference.resolve()
    check_embedder(config.sampling.embedder)
    shards = sorted(groups.path.glob("*.parquet"))
    delete_stray_shards(out, {out / shard.name for shard in shards})
    missing = [shard for shard in shards if not is_finished(out / shard.name, pq.read_table(shard, columns=["id"]))]
    on_rows(sum(pq.ParquetFile(shard).metadata.num_rows for shard in shards if shard not in missing))
    if missing:
        _write_ranked(_ranked_units(config, missing, reference), missing, out, on_rows)
    selected = read_table(groups.path / SELECTED)
    write_table(out / SELECTED / "part-00000.parquet", selected)
    before = json.loads((groups.path / STATS).read_text(encoding="utf-8"))
    speeds = {kind: numbers["tokens_per_second"] for kind, numbers in before.items() if numbers["tokens_per_second"]}
    write_json(out / STATS, count_candidates((pq.read_table(out / shard.name) for shard in shards), speeds))
    return groups.manifest.summary


def _ranked_units(config: RunConfig, shards: Sequence[Path], reference: Path) -> "Dataset":
    """One ranked unit per shard; its `start` is the index of the shard."""
    tables, seed = [ray.put(pq.read_table(shard)) for shard in shards], config.seed

    def read(batch: pa.Table) -> pa.Table:
        (index,) = batch["shard"].to_pylist()
        unit = empty_unit(index, seed)
        unit["groups"] = [without_ranks(group) for group in ray.get(tables[index]).to_pylist()]
        return write_units([unit])

    units = ray.data.from_items([{"shard": index} for index in range(len(shards))], override_num_blocks=len(shards))
    configure(units)
    units = units.map_batches(read, batch_size=1, batch_format="pyarrow", num_cpus=LOGICAL_CPUS)
    options = actor_options(config, config.sampling.rankers, pool_gpus(config, config.sampling.rankers))
    return units.map_batches(Ranker, fn_constructor_args=(config, reference), batch_size=1, **options)


def without_ranks(group: Group) -> Group:
    """The group as it was before it was ranked: only answers that the data ranks have ranks and scores."""
    given = sum(kind in (GOLD, ANSWER) for kind in group["candidate_kind"])
    scores = group.get("score")
    return {**group, "rank": group["rank"][:given] if given > 1 else [], "score": scores[:given] if scores else None}


def _write_ranked(units: "Dataset", shards: Sequence[Path], out: Path, on_rows: OnRows) -> None:
    with plain_errors(SAMPLING_ACTOR):
        for batch in units.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=1):
            for unit in read_units(batch):
                shard = shards[unit["start"]]
                schema = SCORED_GROUP_SCHEMA if "score" in pq.read_schema(shard).names else GROUP_SCHEMA
                table = pa.Table.from_pylist(unit["groups"], schema=schema)
                write_table(out / shard.name, table.replace_schema_metadata(pq.read_schema(shard).metadata))
                on_rows(len(table))
