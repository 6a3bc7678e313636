"""The same groups under another embedder: nothing is drawn or scored again."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from cpo_ray.artifacts import STATS, Artifact, Summary, write_json, write_table
from cpo_ray.cluster.raydata import LOGICAL_CPUS, configure, plain_errors
from cpo_ray.config import RunConfig
from cpo_ray.inference.embedding import check_embedder
from cpo_ray.records import GROUP_SCHEMA
from cpo_ray.sampling.actor_pools import SAMPLING_ACTOR, actor_options, with_absolute_paths
from cpo_ray.sampling.groups import OnRows, delete_strays, is_finished
from cpo_ray.sampling.ranking import Ranker
from cpo_ray.sampling.stats import count_candidates
from cpo_ray.sampling.units import begin_unit, read_units, write_units


def rank_again(config: RunConfig, groups: Artifact, reference: Path, out: Path, on_rows: OnRows) -> Summary:
    """Write into `out` the groups artifact `groups` with `similarity` and `rank` by the configured embedder.

    Shards keep their bounds; those that are in `out` already, with these bounds, are kept. reference: the model whose
    tokenizer turns candidates into text. on_rows(n): called as n more rows are done. Ray must be initialised.
    """
    config, reference = with_absolute_paths(config), reference.resolve()
    check_embedder(config.sampling.embedder)
    shards = sorted(groups.path.glob("*.parquet"))
    delete_strays(out, {out / shard.name for shard in shards})
    missing = [shard for shard in shards if not is_finished(out / shard.name, pq.read_table(shard, columns=["id"]))]
    on_rows(sum(pq.ParquetFile(shard).metadata.num_rows for shard in shards if shard not in missing))
    tables = [ray.put(pq.read_table(shard)) for shard in missing]

    def read(batch: pa.Table) -> pa.Table:
        (number,) = batch["shard"].to_pylist()
        unit = begin_unit(number, config.seed)
        unit["groups"] = ray.get(tables[number]).to_pylist()
        return write_units([unit])

    if missing:
        items = [{"shard": number} for number in range(len(missing))]
        units = ray.data.from_items(items, override_num_blocks=len(items))
        configure(units)
        units = units.map_batches(read, batch_size=1, batch_format="pyarrow", num_cpus=LOGICAL_CPUS)
        options = actor_options(config, config.sampling.rankers, config.cluster.gpus_per_worker)
        units = units.map_batches(Ranker, fn_constructor_args=(config, reference), batch_size=1, **options)
        with plain_errors(SAMPLING_ACTOR):
            for batch in units.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=1):
                for unit in read_units(batch):
                    shard = missing[unit["start"]]
                    metadata = pq.read_schema(shard).metadata
                    table = pa.Table.from_pylist(unit["groups"], schema=GROUP_SCHEMA)
                    write_table(out / shard.name, table.replace_schema_metadata(metadata))
                    on_rows(len(table))
    before = json.loads((groups.path / STATS).read_text(encoding="utf-8"))
    speeds = {kind: numbers["tokens_per_second"] for kind, numbers in before.items() if numbers["tokens_per_second"]}
    write_json(out / STATS, count_candidates((pq.read_table(out / shard.name) for shard in shards), speeds))
    return groups.manifest.summary
