"""The whole stage with real Ray Data, vLLM, transformers and MiniLM, on a tiny model."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from cpo_ray.artifacts import Artifact, Manifest, read_table, write_table
from cpo_ray.cluster.cards import Cards
from cpo_ray.cluster.session import ray_cluster
from cpo_ray.config import ClusterConfig
from cpo_ray.errors import ConfigError, DataError
from cpo_ray.planning.placement import place
from cpo_ray.records import GROUP_SCHEMA, end_response, without_eos
from cpo_ray.sampling.groups import PhaseHooks, make_groups
from cpo_ray.sampling.phases import DRAWN, read_drawn
from cpo_ray.sampling.reranking import rerank
from tests.engines import engine_processes
from tests.sampling.group_settings import (
    HOT,
    KINDS,
    ROUNDED,
    SAMPLED,
    assert_same_groups,
    make_config,
)
from tests.sampling.tiny_reference import CONTEXT, MAX_RESPONSE, ROWS
from tests.waiting import eventually

pytestmark = pytest.mark.e2e

ONE_GPU = {"gpus": 1, "device": "cpu"}
USABLE = ROWS - 1  # one row has no truncation negative


@pytest.fixture(scope="module")
def ray(kind_module, api):
    with ray_cluster(ClusterConfig(object_store_gib=0.3, **ONE_GPU)) as cluster:
        cluster.ensure()
        import ray

        yield ray


@pytest.fixture(scope="module")
def between():
    """What was seen between the phases: the sampled rows, the engines' processes, and the GPUs that are free."""
    return {}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data, reference, ray, between):
    """Groups that were made in phases on one GPU, which is counted only."""
    out, progress, sampled = tmp_path_factory.mktemp("groups"), [], []
    config = place(make_config().model_copy(update={"cluster": ClusterConfig(**ONE_GPU)}), Cards(1)).config

    def look():
        free = eventually(lambda: ray.available_resources().get("GPU") == 1)
        drawn = sum(len(read_drawn(out / DRAWN, start)["groups"]) for start in range(0, USABLE, 16))
        ended = eventually(lambda: engine_processes() == [])
        between.update(rows=sum(sampled), drawn=drawn, ended=ended, free=free, shards=progress.copy())

    started = time.monotonic()
    summary = make_groups(config, data, reference, out, progress.append, phases=PhaseHooks(sampled.append, look))
    print(f"\n{summary['rows']} rows in {time.monotonic() - started:.1f} s, engine start included: {summary}")
    return out, summary, progress


def test_on_one_gpu_the_engine_has_ended_before_the_scorer_starts(finished, between):
    assert between == {"rows": USABLE, "drawn": USABLE, "ended": True, "free": True, "shards": []}


def test_groups_have_the_schema_the_order_and_the_configured_candidates(finished, data, tokenizer, api):
    out, summary, progress = finished
    table = read_table(out)
    assert table.schema.equals(GROUP_SCHEMA)
    shards = [f"part-0000{i}.parquet" for i in range(3)]
    assert sorted(p.name for p in out.glob("*")) == [*shards, "selected", "stats.json"]
    selected = read_table(out / "selected").select(["id", "prompt_ids"])
    assert selected.equals(table.select(["id", "prompt_ids"]))
    examples = [row for row in read_table(data / "train").to_pylist() if row["id"] != f"{40:016x}"]
    assert sum(progress) == summary["rows"] == USABLE == len(table)
    assert summary["unhelpful"]["asked"] == len(api.answered) == USABLE
    assert summary["candidates"] == len(KINDS)
    assert (summary["left_out"], summary["truncated_prompts"]) == (1, 1)
    eos = tokenizer.eos_token_id
    for number, (example, group) in enumerate(zip(examples, table.to_pylist(), strict=True)):
        assert group["id"] == example["id"]
        assert group["prompt_ids"] == example["prompt_ids"][-(CONTEXT - MAX_RESPONSE) :]
        assert group["candidate_kind"] == KINDS
        gold, *negatives = group["candidate_ids"]
        assert gold == example["response_ids"]
        assert group["candidate_text"] == tokenizer.batch_decode(group["candidate_ids"], skip_special_tokens=True)
        assert sorted(group["rank"]) == list(range(len(KINDS)))
        assert (group["rank"][0], group["similarity"][0]) == (0, 1.0)
        by_rank = sorted(range(1, len(KINDS)), key=lambda k: group["rank"][k])
        assert by_rank == sorted(by_rank, key=lambda k: (-group["similarity"][k], k))
        for sample in (*negatives[:3], negatives[11]):
            assert 1 <= len(sample) <= MAX_RESPONSE
            assert sample.count(eos) == (sample[-1] == eos)
            assert sample[-1] == eos or len(sample) == MAX_RESPONSE
        exchanged = [example["response_ids"] for example in examples[number // 16 * 16 :][:16]]
        assert all(negative in exchanged and negative != gold for negative in negatives[3:6])
        assert (gold[-1] == eos) == (number != 7)  # the response of row 7 is cut
        text = without_eos(gold, eos)
        assert all(len(n) == len(gold) and n.count(eos) == gold.count(eos) for n in negatives[6:8])
        assert all((n[-1] == eos) == (gold[-1] == eos) for n in negatives[6:8])
        assert all(n[:-1] == gold[: len(n) - 1] and n[-1] == eos and len(n) <= len(text) for n in negatives[8:10])
        assert negatives[10] == [*tokenizer.encode("the apples are a pear"), eos]
        assert negatives[12] == end_response(tokenizer.encode(example["response"].upper()), eos, MAX_RESPONSE)
    assert summary["golds_without_eos"] == 1


def test_reference_scores_equal_separate_forward_passes(finished, reference):
    model = AutoModelForCausalLM.from_pretrained(reference)
    for group in read_table(finished[0]).to_pylist()[::7]:
        prompt = group["prompt_ids"]
        for candidate, score in zip(group["candidate_ids"], group["ref_logps"], strict=True):
            with torch.no_grad():
                logps = model(torch.tensor([prompt + candidate])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            assert score == pytest.approx(logps.gather(1, torch.tensor(candidate)[:, None]).sum().item(), abs=1e-3)


def test_samples_come_from_the_reference(finished, reference):
    """Samples have a mean log-prob near minus the model's entropy, much higher than that of random tokens."""
    stats = json.loads((finished[0] / "stats.json").read_text())
    assert set(stats) == set(KINDS)
    assert stats["autoregressive"]["count"] == 2 * USABLE
    for kind in KINDS[1:]:
        assert stats[kind]["tokens_per_second"] > 0, kind
        assert stats[kind]["redraws"] >= 0
    per_token = {kind: entry["mean_ref_logp"] / entry["mean_tokens"] for kind, entry in stats.items()}
    assert per_token["autoregressive"] > per_token["gold"] + 0.5
    assert per_token["greedy"] > per_token["autoregressive"] > per_token["hot"]
    assert stats["greedy"]["redraws"] == 0
    assert {f"{kind}_equal_to_gold" for kind in SAMPLED} <= set(finished[1])


def test_greedy_negatives_are_the_references_greedy_answers(finished, reference, tokenizer):
    """Every token has the highest logit, up to rounding, and nothing goes on after EOS or the limit."""
    model = AutoModelForCausalLM.from_pretrained(reference)
    for group in read_table(finished[0]).to_pylist()[::5]:
        prompt, answer = group["prompt_ids"], group["candidate_ids"][KINDS.index("greedy")]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
        assert (logits.max(dim=1).values - chosen).max() < 1e-3
        assert answer[-1] == tokenizer.eos_token_id or len(answer) == MAX_RESPONSE


def test_a_rerun_makes_only_the_missing_shard_with_the_same_rows(finished, data, reference):
    """With all actors at once, while the first run had phases."""
    out, _, _ = finished
    counted = json.loads((out / "stats.json").read_text())
    before, second = read_table(out), out / "part-00001.parquet"
    untouched = {p: p.stat().st_mtime_ns for p in out.glob("*.parquet") if p != second}
    second.unlink()
    progress: list[int] = []
    make_groups(make_config(), data, reference, out, progress.append)
    assert progress[0] == 64
    assert sum(progress) == USABLE
    assert {p: p.stat().st_mtime_ns for p in untouched} == untouched
    after = read_table(out)
    fixed = [k for k, kind in enumerate(KINDS) if kind not in SAMPLED]
    for old, new in zip(before.to_pylist(), after.to_pylist(), strict=True):
        assert old["id"] == new["id"]
        assert [old["candidate_ids"][k] for k in fixed] == [new["candidate_ids"][k] for k in fixed]
        assert [old["ref_logps"][k] for k in fixed] == pytest.approx([new["ref_logps"][k] for k in fixed], abs=1e-5)
    redraws = json.loads((out / "stats.json").read_text())
    assert {kind: redraws[kind]["redraws"] for kind in ("batch", "truncation")} == {
        kind: counted[kind]["redraws"] for kind in ("batch", "truncation")
    }


def test_another_embedder_only_ranks_again(finished, reference, tmp_path):
    """Groups with the ranks of another embedder: only ranks and similarities change, to those of this embedder."""
    out, summary, _ = finished
    expected, before = read_table(out), tmp_path / "before"
    for shard in out.glob("*.parquet"):
        table = pq.read_table(shard)
        for name, wrong in (("rank", list(range(len(KINDS)))), ("similarity", [0.5] * len(KINDS))):
            place = table.schema.names.index(name)
            table = table.set_column(place, table.schema.field(name), pa.array([wrong] * len(table), table[name].type))
        write_table(before / shard.name, table)
    (before / "stats.json").write_bytes((out / "stats.json").read_bytes())
    write_table(before / "selected" / "part-00000.parquet", read_table(out / "selected"))
    artifact = Artifact("groups/train", before, Manifest({}, {}, summary, 0.0, ""))
    done: list[int] = []
    shard = min(before.glob("*.parquet"))
    for name in (shard.name, "part-00077.parquet"):  # left by a killed run with other bounds
        write_table(tmp_path / "after" / name, pq.read_table(shard).slice(0, 3))
    assert rerank(make_config(), artifact, reference, tmp_path / "after", done.append) == summary
    after = read_table(tmp_path / "after")
    assert sum(done) == len(after)
    same = [name for name in GROUP_SCHEMA.names if name != "similarity"]
    assert after.select(same).equals(expected.select(same))
    flat = [pa.compute.list_flatten(table["similarity"]).to_pylist() for table in (after, expected)]
    assert flat[0] == pytest.approx(flat[1], abs=ROUNDED)
    assert read_table(tmp_path / "after" / "selected").equals(read_table(out / "selected"))
    stats = [json.loads((folder / "stats.json").read_text()) for folder in (tmp_path / "after", out)]
    assert stats[0]["batch"]["redraws"] == stats[1]["batch"]["redraws"]


def make_mixed(data, reference, out, on_rows=lambda _: None, **sampling):
    """Groups of MixN."""
    config = make_config(negatives={"batch": 3, "meanfield": 5, "truncation": 3}, kinds={}, **sampling)
    make_groups(config, data, reference, out, on_rows)
    return read_table(out)


@pytest.fixture(scope="module")
def by_one_actor_each(data, reference, ray, tmp_path_factory):
    return make_mixed(data, reference, tmp_path_factory.mktemp("mixed") / "groups")


def test_neither_the_number_of_actors_nor_an_interruption_changes_a_row(by_one_actor_each, data, reference, tmp_path):
    """One actor of each kind, or three that are stopped after the first shard and started again."""
    out, three = tmp_path / "three", {"scorers": {"minimum": 3}, "rankers": {"minimum": 3}}

    def stop(_):
        if list(out.glob("*.parquet")):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_mixed(data, reference, out, stop, **three)
    assert len(list(out.glob("*.parquet"))) == 1
    assert_same_groups(by_one_actor_each, make_mixed(data, reference, out, **three))


@pytest.mark.chaos
def test_a_full_object_store_changes_no_row(by_one_actor_each, data, reference, ray, tmp_path):
    """Other objects of twice the store's size are spilled to disk and restored."""
    held = [ray.put(np.full(50 * 2**20, number, np.uint8)) for number in range(12)]
    assert_same_groups(by_one_actor_each, make_mixed(data, reference, tmp_path / "full"))
    assert [int(ray.get(thing)[-1]) for thing in held] == list(range(12))


def test_no_engine_is_left_after_the_stage(finished, ray):
    assert eventually(lambda: engine_processes() == [])
    assert eventually(lambda: ray.available_resources().get("CPU") == 8)


def test_an_invalid_negative_of_a_kind_raises_a_config_error(finished, data, reference, tmp_path):
    """It is raised in a Ray task and reaches the driver as a ConfigError."""
    counts = {"batch": 3, "meanfield": 0, "truncation": 0, "mute": 1}
    config = make_config(rows=16, negatives=counts, kinds={"mute": "shouting_kinds:mute"})
    with pytest.raises(
        ConfigError, match=r"sampling\.negatives\.mute: the negative for row .* is not a valid continuation"
    ):
        make_groups(config, data, reference, tmp_path, lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_too_few_rows_for_batch_negatives_raise_an_error_before_any_actor_starts(data, reference, tmp_path):
    with pytest.raises(DataError, match="have 2 different responses"):
        make_groups(make_config(rows=3), data, reference, tmp_path, lambda _: None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.chaos
def test_a_killed_engine_is_restarted(finished, data, reference, kind_module, tmp_path):
    """vLLM's process is killed before its last unit: the actor exits, Ray Data replaces it and the stage finishes."""
    killed: list[int] = []

    def kill_once(_):
        if not killed:
            killed.append(engine_processes()[0].pid)
            os.kill(killed[0], signal.SIGKILL)
            (kind_module / "gate").touch()

    held_back = make_config(
        engine={"kv_cache_gib": 0.25, "max_sequences": 1}, kinds={"shouted": "shouting_kinds:patient", "hot": HOT}
    )
    summary = make_groups(held_back, data, reference, tmp_path, kill_once)
    assert len(killed) == 1
    assert summary["rows"] == len(read_table(Path(tmp_path))) == USABLE
