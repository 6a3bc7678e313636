"""Shards on disk. The whole stage is in test_groups_e2e."""

import pyarrow as pa

from cpo_ray.artifacts import read_table, write_table
from cpo_ray.records import GROUP_SCHEMA
from cpo_ray.sampling.groups import GroupShard, measured_noise


def shard(folder, start, stop, spread, schema=GROUP_SCHEMA):
    """A shard of groups with candidates of 4 and of 16 tokens, each with this measured spread."""
    group = {"id": "a", "prompt": "", "prompt_ids": [1], "candidate_ids": [[1] * 4, [1] * 16], "ref_spread": spread}
    written = GroupShard(folder / f"part-{start}.parquet", start, stop)
    write_table(written.path, pa.Table.from_pylist([group] * (stop - start), schema=schema))
    return written


def test_the_noise_is_read_from_the_shards_of_the_sample_however_they_were_made(tmp_path):
    """0.2 nat of 4 tokens and 0.4 nat of 16 are both 0.1 per sqrt(token). Rows without a measurement do not count."""
    old = pa.schema([field for field in GROUP_SCHEMA if field.name != "ref_spread"])
    shards = [
        shard(tmp_path, 0, 2, [0.2, 0.4]),
        shard(tmp_path, 2, 4, None),
        shard(tmp_path, 4, 6, None, old),
        shard(tmp_path, 256, 258, [9.0, 9.0]),
    ]
    assert measured_noise(shards) == 0.1
    assert measured_noise(shards[2:3]) is None
    assert read_table(tmp_path)["ref_spread"].null_count == 4  # shards of both versions are one table
