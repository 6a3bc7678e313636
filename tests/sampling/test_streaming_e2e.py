"""Sampling while training goes on: real Ray Data, and real Ray Train at the other end."""

import json
import threading
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from cpo_ray.artifacts import read_table, write_table
from cpo_ray.cluster.session import ray_cluster
from cpo_ray.config import ClusterConfig, ObjectiveConfig, RunConfig
from cpo_ray.errors import ConfigError, DataError
from cpo_ray.objective.logprobs import candidate_logps
from cpo_ray.objective.packing import pack_groups
from cpo_ray.sampling.streaming import open_stream, write_recorded
from cpo_ray.training import trainer
from cpo_ray.training.batch_order import Batches
from cpo_ray.training.task import Task
from tests.engines import engine_processes
from tests.sampling.made_rows import make_table
from tests.sampling.small_world import CONTEXT, MAX_RESPONSE, ROWS
from tests.training.world import tampered

pytestmark = pytest.mark.e2e

STEPS, PROMPTS, SEED = 8, 16, 17  # an epoch is six steps
COUNTS = {"batch": 3, "meanfield": 2, "truncation": 2}
DRAWN = ("id", "candidate_kind", "candidate_ids", "rank")


def make_config(**sampling):
    return RunConfig.model_validate(
        {
            "name": "test",
            "seed": SEED,
            "data": {"max_prompt_tokens": 40, "max_response_tokens": MAX_RESPONSE, "on_bad_row": "quarantine"},
            "model": {"context": CONTEXT},
            "sampling": {"stream": True, "negatives": COUNTS} | sampling,
            "training": {
                "steps": STEPS,
                "prompts_per_step": PROMPTS,
                "prompts_per_microbatch": 4,
                "checkpoint_every": 2,
                "learning_rate": 1e-3,
            },
        }
    )


@pytest.fixture(scope="module")
def cluster():
    config = ClusterConfig(object_store_gib=0.3)
    with ray_cluster(config) as lazy:
        lazy.ensure()
        yield config


@pytest.fixture(scope="module")
def stream(data, reference, cluster, tmp_path_factory):
    """Opens a stream of this configuration."""
    root = tmp_path_factory.mktemp("streams")

    def order(rows):
        assert rows == ROWS - 1
        return Batches(rows, PROMPTS, SEED).at

    def open_one(folder="stream", **sampling):
        return open_stream(make_config(**sampling), data, reference, root / folder, order)

    return open_one


@pytest.fixture(scope="module")
def streamed(stream):
    """A stream, and all its steps."""
    mine = stream()
    return mine, dict(mine.groups(0))


def other_model(reference, folder):
    """A model of the same shape and tokenizer with other weights."""
    model = AutoModelForCausalLM.from_pretrained(reference)
    for parameter in model.parameters():
        parameter.data = parameter.data.flip(0)
    model.save_pretrained(folder)


def candidates(group, kind):
    return [ids for ids, name in zip(group["candidate_ids"], group["candidate_kind"], strict=True) if name == kind]


def test_each_step_has_its_rows_fresh_negatives_and_the_same_ones_after_a_restart(streamed, data):
    mine, steps = streamed
    assert list(steps) == list(range(STEPS))
    ids = [row_id for row_id in read_table(data / "train")["id"].to_pylist() if row_id != f"{40:016x}"]
    times_seen = {}
    for step, groups in steps.items():
        assert [group["id"] for group in groups] == [ids[row] for row in Batches(ROWS - 1, PROMPTS, SEED).at(step)]
        for group in groups:
            times_seen.setdefault(group["id"], []).append(group)
    twice = [groups for groups in times_seen.values() if len(groups) == 2]
    assert len(twice) == (STEPS - 6) * PROMPTS
    assert all(one["candidate_ids"][0] == two["candidate_ids"][0] for one, two in twice)
    fresh = [one["candidate_ids"][1:] != two["candidate_ids"][1:] for one, two in twice]
    assert sum(fresh) == len(fresh)

    again = dict(mine.groups(5))
    assert list(again) == [5, 6, 7]
    for step, groups in again.items():
        for one, two in zip(groups, steps[step], strict=True):
            assert [one[name] for name in DRAWN] == [two[name] for name in DRAWN]
            assert one["ref_logps"] == pytest.approx(two["ref_logps"], abs=1e-5)


def test_what_was_streamed_can_be_looked_at(streamed, tmp_path):
    mine, steps = streamed
    groups = [group for step in range(STEPS) for group in steps[step]]
    out = tmp_path / "groups"
    summary = write_recorded(mine, out)
    assert summary["rows"] == len(groups) == STEPS * PROMPTS  # of so few steps all are kept
    assert summary["of steps"] == list(range(1, STEPS + 1))
    assert "1 rows were left out: one-token response" in summary["warnings"][0]
    assert read_table(out)["id"].to_pylist() == [group["id"] for group in groups]
    stats = json.loads((out / "stats.json").read_text())
    assert {kind: entry["count"] for kind, entry in stats.items()} == {
        kind: count * len(groups) for kind, count in ({"gold": 1} | COUNTS).items()
    }
    assert stats["meanfield"]["tokens_per_second"] > 0


def test_a_refreshed_stream_samples_from_the_policy_and_scores_with_the_reference(streamed, stream, reference):
    """Steps 4 and 5 from another model, by the engine that was there before; 6 and 7 from one that equals the reference."""
    _, from_reference = streamed
    engine = {"kv_cache_gib": 0.25, "max_sequences": 16}
    mine = stream("refreshed", refresh_steps=2, negatives=COUNTS | {"autoregressive": 1}, engine=engine)
    arrived, over, engines = {}, threading.Event(), set()

    def listen():
        for step, groups in mine.groups(0):
            arrived[step] = groups
            engines.update(process.pid for process in engine_processes())
        over.set()

    listener = threading.Thread(target=listen)
    listener.start()
    other_model(reference, mine.shelf.desk(2))
    mine.shelf.put(2)
    while len(arrived) < 6:
        assert listener.is_alive()
        assert not over.wait(0.2)
    assert not over.wait(3)  # steps 6 and 7 wait for the policy of step 4
    AutoModelForCausalLM.from_pretrained(reference).save_pretrained(mine.shelf.desk(4))
    mine.shelf.put(4)
    listener.join(120)
    assert sorted(arrived) == list(range(STEPS))
    assert len(engines) == 1

    def same(step, kind):
        pairs = zip(arrived[step], from_reference[step], strict=True)
        return [candidates(one, kind) == candidates(two, kind) for one, two in pairs]

    for step in (0, 3, 6, 7):  # from the reference, or from a policy that equals it
        assert all(same(step, "meanfield"))
    for step in (4, 5):
        assert all(same(step, "batch"))
        assert sum(same(step, "meanfield")) < PROMPTS / 2
        for one, two in zip(arrived[step], from_reference[step], strict=True):
            assert one["ref_logps"][0] == pytest.approx(two["ref_logps"][0], abs=1e-5)

    policy = AutoModelForCausalLM.from_pretrained(mine.shelf.place(2))
    for step, groups in arrived.items():
        samples = [(group["prompt_ids"], *candidates(group, "autoregressive")) for group in groups]
        under_policy = candidate_logps(policy, pack_groups([p for p, _ in samples], [[s] for _, s in samples]))
        under_reference = sum(group["ref_logps"][1] for group in groups)
        assert (under_policy.sum() > under_reference) == (step in (4, 5))


def test_a_step_whose_rows_are_too_much_alike_is_told_before_anything_starts(reference, cluster, tmp_path):
    """Every sixth row has the same response: no sixteen in a row are alike, but the third step takes those alone."""
    table = make_table([[5, 0] if number % 6 == 0 else [6 + number, 0] for number in range(6 * PROMPTS)])
    write_table(tmp_path / "train" / "part-00000.parquet", table)
    config = make_config(negatives={"batch": 3, "meanfield": 0, "truncation": 0})

    def alike_at(wanted):
        return lambda rows: lambda step: list(range(0, rows, 6)) if step == wanted else list(range(PROMPTS))

    with pytest.raises(DataError, match="have 0 different responses"):
        open_stream(config, tmp_path, reference, tmp_path / "stream", alike_at(2))
    open_stream(config, tmp_path, reference, tmp_path / "stream", alike_at(STEPS))


def test_what_is_wrong_with_a_kind_is_told_before_anything_starts(stream):
    with pytest.raises(ConfigError, match="no_such_module"):
        stream(negatives={"own": 1}, kinds={"own": "no_such_module:draw"})


@pytest.mark.chaos
def test_a_killed_worker_changes_no_bit_of_the_final_weights(stream, reference, cluster, tmp_path, monkeypatch):
    """Two workers, a policy every second step; one is killed at step 5 and the stream opened again."""

    def train(name):
        config = make_config(refresh_steps=2)
        task = Task(
            stage="cpo",
            training=config.training,
            objective=ObjectiveConfig(),
            scheduled_sampling=None,
            model=str(reference),
            rows=None,
            validation=None,
            seed=SEED,
            cuda=False,
            threads=1,
            stream=stream(f"stream-{name}", refresh_steps=2),
        )
        losses, notices = {}, []
        hear = partial(hear_step, losses)
        (tmp_path / name).mkdir()
        trainer.train_model(task, cluster, tmp_path / f"{name}-checkpoints", tmp_path / name, hear, notices.append)
        assert sorted(losses) == list(range(1, STEPS + 1))
        return load_file(tmp_path / name / "model.safetensors"), notices

    undisturbed, notices = train("undisturbed")
    assert notices == []
    (tmp_path / "blows").mkdir()
    # Steps so long that the checkpoints of the second and fourth are in the storage by then.
    monkeypatch.setattr(trainer, "train_worker", tampered({("step", 5): 1}, tmp_path / "blows", pause=1.0))
    disturbed, notices = train("disturbed")
    assert notices
    assert all(notice.startswith("workers were lost: going on from step ") for notice in notices)
    assert [blow.name for blow in (tmp_path / "blows").iterdir()] == ["step-5"]
    assert all(torch.equal(undisturbed[name], disturbed[name]) for name in undisturbed)


def hear_step(losses, metrics):
    losses[metrics["step"]] = metrics["loss"]
