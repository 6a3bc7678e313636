"""The numbers of stats.json, compared with counts by hand."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cpo_ray.artifacts import make_artifact, write_json, write_table
from cpo_ray.config import KindDecoding
from cpo_ray.config.sampled_kinds import GREEDY
from cpo_ray.records import GROUP_SCHEMA
from cpo_ray.sampling.stats import DrawCounts, count_candidates, eos_of, warnings, with_metadata

EOS = 0
GOLD = [1, 2, 3, EOS]


def group(gold=GOLD, **candidates):
    """candidates: kind -> its candidates, as token ids."""
    ids = [gold, *(tokens for lists in candidates.values() for tokens in lists)]
    return {
        "id": "a",
        "prompt": "p",
        "prompt_ids": [5],
        "candidate_kind": ["gold", *(kind for kind, lists in candidates.items() for _ in lists)],
        "candidate_ids": ids,
        "candidate_text": ["t"] * len(ids),
        "similarity": [1.0, *(0.5 - 0.1 * k for k in range(len(ids) - 1))],
        "rank": list(range(len(ids))),
        "ref_logps": [-2.0 * len(tokens) for tokens in ids],
    }


def shard(*groups, **redraws):
    return with_metadata(pa.Table.from_pylist(list(groups), schema=GROUP_SCHEMA), redraws, EOS)


@pytest.fixture
def shards():
    first = group(batch=[[4, EOS], [4, EOS]], autoregressive=[[9, 9, 9, 9], GOLD])
    second = group(batch=[[4, 5, 6, 7, 8, EOS], GOLD], autoregressive=[[9, EOS], [4, 5, 6, 7, 8, EOS]])
    return [shard(first, autoregressive=3, batch=1), shard(second, autoregressive=5)]


def test_counts_by_hand(shards):
    stats = count_candidates(shards, {"autoregressive": 1234.56})
    assert list(stats) == ["gold", "batch", "autoregressive"]
    batch, sampled = stats["batch"], stats["autoregressive"]
    assert (batch["count"], batch["tokens"], batch["mean_tokens"]) == (4, 2 + 2 + 6 + 4, 3.5)
    assert (batch["equal_to_gold"], batch["duplicates"], batch["redraws"]) == (1, 1, 1)
    assert (sampled["equal_to_gold"], sampled["duplicates"], sampled["redraws"]) == (1, 1, 8)
    assert (batch["equal_to_gold_rate"], batch["duplicate_rate"], batch["redraw_rate"]) == (0.25, 0.25, 0.2)
    assert sampled["redraw_rate"] == pytest.approx(8 / 12)
    assert (batch["without_eos"], sampled["without_eos"]) == (0, 1)
    assert (batch["tokens_per_second"], sampled["tokens_per_second"]) == (None, 1234.6)
    assert stats["gold"]["equal_to_gold"] == stats["gold"]["redraws"] == 0


def test_candidates_without_eos_are_counted_for_a_cut_gold_too():
    cut = group(gold=[1, 2, 3, 4], truncation=[[1, 2, EOS]], autoregressive=[[1, 2, 3, 4], [1, 2, 3, 5]])
    whole = group(truncation=[[1, 2, EOS]], autoregressive=[[9, 9, 9, 9], [9, EOS]])
    stats = count_candidates([shard(cut), shard(whole)])
    assert {kind: numbers["without_eos"] for kind, numbers in stats.items()} == {
        "gold": 1,
        "truncation": 0,
        "autoregressive": 3,
    }
    assert (stats["gold"]["without_eos_rate"], stats["autoregressive"]["without_eos_rate"]) == (0.5, 0.75)
    assert stats["autoregressive"]["equal_to_gold"] == 1


def test_the_eos_of_shards_of_older_versions_is_the_last_token_of_their_golds():
    table = pa.Table.from_pylist([group(autoregressive=[[9, 9], [9, EOS]])], schema=GROUP_SCHEMA)
    assert eos_of(table) == EOS
    assert count_candidates([table])["autoregressive"]["without_eos"] == 1
    assert eos_of(with_metadata(table, {}, 7)) == 7
    assert eos_of(table.slice(0, 0)) is None


def test_distributions_are_relative_to_the_gold(shards):
    stats = count_candidates(shards)
    batch = stats["batch"]
    assert (batch["length"]["min"], batch["length"]["median"], batch["length"]["max"]) == (2, 3, 6)
    assert (batch["length_ratio"]["min"], batch["length_ratio"]["max"]) == (0.5, 1.5)
    assert stats["gold"]["length_ratio"]["mean"] == 1
    assert batch["ref_logp_per_token"]["mean"] == -2
    assert batch["similarity"]["mean"] == pytest.approx(0.45)
    assert stats["gold"]["similarity"]["min"] == 1
    for kind in stats.values():
        assert (
            sum(kind["length"]["histogram"]["counts"])
            == kind["count"]
            == sum(kind["similarity"]["histogram"]["counts"])
        )
        assert kind["length"]["histogram"] | {"counts": []} == {
            "low": 0,
            "high": 6,
            "counts": [],
        }  # same bins for all
    assert json.loads(json.dumps(stats, allow_nan=False)) == stats


def test_counts_do_not_depend_on_the_shards(shards):
    both = pa.concat_tables(shards)  # keeps the first shard's metadata
    together = count_candidates([both])
    separate = count_candidates([*shards, shard()])
    for kind, numbers in separate.items():
        assert {**numbers, "redraws": 0, "redraw_rate": 0} == {**together[kind], "redraws": 0, "redraw_rate": 0}
    assert count_candidates([table.slice(0, 1) for table in shards]) == separate
    assert count_candidates([]) == {}


def test_redraws_survive_a_round_trip_to_disk_and_change_no_column(shards, tmp_path):
    write_table(tmp_path / "part.parquet", shards[0])
    table = pq.read_table(tmp_path / "part.parquet")
    assert table.schema.equals(GROUP_SCHEMA)
    assert count_candidates([table]) == count_candidates(shards[:1])


def test_a_shard_without_redraws_in_its_metadata_counts_none():
    table = pa.Table.from_pylist([group(batch=[[4, EOS]])], schema=GROUP_SCHEMA)
    assert count_candidates([table])["batch"]["redraws"] == 0


def test_work_is_summed_by_kind():
    counts = DrawCounts()
    counts.add([{"kind": "batch", "redraws": 1, "tokens": 10, "seconds": 2.0}])
    counts.add([{"kind": "batch", "redraws": 0, "tokens": 20, "seconds": 1.0}])
    counts.add([{"kind": "unhelpful", "redraws": 4, "tokens": 5, "seconds": 0.0}])
    assert counts.speeds == {"batch": 10.0}
    assert counts.redraws == {"batch": 1, "unhelpful": 4}


def test_warnings_report_left_out_rows_cut_prompts_and_repeated_draws(shards):
    sampled = {"autoregressive": KindDecoding(1.0, 50, 1.0)}
    lines = warnings(count_candidates(shards), sampled, {"empty prompt": 2}, 3)
    assert lines[0] == "2 rows were left out: empty prompt"
    assert lines[1].startswith("3 prompts lost their first tokens")
    assert lines[2].startswith("25% of the autoregressive negatives equal the gold")
    assert lines[3].startswith("67% of the draws of autoregressive negatives repeated")
    assert len(lines) == 4
    assert warnings(count_candidates([shard(group(batch=[[4, EOS]]))]), sampled, {}, 0) == []


def test_warnings_name_every_autoregressive_kind_that_equals_the_gold():
    kinds = shard(group(greedy=[GOLD], hot=[GOLD], autoregressive=[[9, EOS]], batch=[GOLD]))
    hot = KindDecoding(1.4, 0, 1.0)
    greedy, other = warnings(count_candidates([kinds]), {"greedy": GREEDY, "autoregressive": hot, "hot": hot}, {}, 0)
    assert greedy.startswith("100% of the greedy negatives equal the gold and will be masked")
    assert greedy.endswith("Train it for fewer steps or use a kind with a temperature.")
    assert other.startswith("100% of the hot negatives equal the gold")
    assert other.endswith("sample at a higher temperature.")


def test_speeds_do_not_change_the_fingerprint_of_an_artifact(tmp_path):
    def build(speed):
        return lambda out: write_json(out / "stats.json", {"speed": speed}) or {}

    slow, fast = make_artifact(tmp_path, "slow", {}, build(1)), make_artifact(tmp_path, "fast", {}, build(2))
    assert slow.fingerprint == fast.fingerprint
