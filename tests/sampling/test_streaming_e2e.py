"""Sampling during training, with real Ray Data and real Ray Train."""

import json
import threading

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
from cpo_ray.training.batch_order import BatchOrder
from cpo_ray.training.task import Task
from tests.engines import engine_processes
from tests.sampling.example_rows import make_table
from tests.sampling.tiny_reference import CONTEXT, MAX_RESPONSE, ROWS
from tests.training.world import worker_with_kills

pytestmark = pytest.mark.e2e

STEPS, PROMPTS, SEED = 8, 16, 17  # an epoch is six steps
COUNTS = {"batch": 3, "meanfield": 2, "truncation": 2}
DRAWN_COLUMNS = ("id", "candidate_kind", "candidate_ids", "rank")


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
        return BatchOrder(rows, PROMPTS, SEED).at

    def open_one(folder="stream", **sampling):
        return open_stream(make_config(**sampling), data, reference, root / folder, order)

    return open_one


@pytest.fixture(scope="module")
def streamed(stream):
    """A stream and the groups of all its steps."""
    opened = stream()
    return opened, dict(opened.groups(0))


def other_model(reference, folder):
    """A model with the reference's shape and tokenizer, but other weights."""
    model = AutoModelForCausalLM.from_pretrained(reference)
    for parameter in model.parameters():
        parameter.data = parameter.data.flip(0)
    model.save_pretrained(folder)


def candidates(group, kind):
    return [ids for ids, name in zip(group["candidate_ids"], group["candidate_kind"], strict=True) if name == kind]


def test_each_step_has_its_rows_and_fresh_negatives_and_a_restart_repeats_them(streamed, data):
    opened, steps = streamed
    assert list(steps) == list(range(STEPS))
    ids = [row_id for row_id in read_table(data / "train")["id"].to_pylist() if row_id != f"{40:016x}"]
    times_seen = {}
    for step, groups in steps.items():
        assert [group["id"] for group in groups] == [ids[row] for row in BatchOrder(ROWS - 1, PROMPTS, SEED).at(step)]
        for group in groups:
            times_seen.setdefault(group["id"], []).append(group)
    twice = [groups for groups in times_seen.values() if len(groups) == 2]
    assert len(twice) == (STEPS - 6) * PROMPTS
    assert all(one["candidate_ids"][0] == two["candidate_ids"][0] for one, two in twice)
    fresh = [one["candidate_ids"][1:] != two["candidate_ids"][1:] for one, two in twice]
    assert sum(fresh) == len(fresh)

    again = dict(opened.groups(5))
    assert list(again) == [5, 6, 7]
    for step, groups in again.items():
        for one, two in zip(groups, steps[step], strict=True):
            assert [one[name] for name in DRAWN_COLUMNS] == [two[name] for name in DRAWN_COLUMNS]
            assert one["ref_logps"] == pytest.approx(two["ref_logps"], abs=1e-5)


def test_recorded_units_become_a_groups_artifact(streamed, tmp_path):
    opened, steps = streamed
    groups = [group for step in range(STEPS) for group in steps[step]]
    out = tmp_path / "groups"
    summary = write_recorded(opened, out)
    assert summary["rows"] == len(groups) == STEPS * PROMPTS  # with so few steps all are recorded
    assert summary["of steps"] == list(range(1, STEPS + 1))
    assert "1 rows were left out: one-token response" in summary["warnings"][0]
    assert read_table(out)["id"].to_pylist() == [group["id"] for group in groups]
    selected = read_table(out / "selected")  # all rows, also those that no step takes
    assert len(selected) == ROWS - 1
    for step in range(STEPS):
        ids = selected["id"].take(BatchOrder(ROWS - 1, PROMPTS, SEED).at(step)).to_pylist()
        assert ids == [group["id"] for group in steps[step]]
    stats = json.loads((out / "stats.json").read_text())
    assert {kind: entry["count"] for kind, entry in stats.items()} == {
        kind: count * len(groups) for kind, count in ({"gold": 1} | COUNTS).items()
    }
    assert stats["meanfield"]["tokens_per_second"] > 0


def test_a_refreshed_stream_samples_from_the_policy_and_scores_with_the_reference(streamed, stream, reference):
    """The same engine samples steps 4 and 5 from another model, 6 and 7 from one that equals the reference."""
    _, from_reference = streamed
    engine = {"kv_cache_gib": 0.25, "max_sequences": 16}
    opened = stream("refreshed", refresh_steps=2, negatives=COUNTS | {"autoregressive": 1}, engine=engine)
    arrived, finished, engines = {}, threading.Event(), set()

    def collect():
        for step, groups in opened.groups(0):
            arrived[step] = groups
            engines.update(process.pid for process in engine_processes())
        finished.set()

    collector = threading.Thread(target=collect)
    collector.start()
    other_model(reference, opened.snapshots.partial_path(2))
    opened.snapshots.publish(2)
    while len(arrived) < 6:
        assert collector.is_alive()
        assert not finished.wait(0.2)
    assert not finished.wait(3)  # steps 6 and 7 wait for the policy of step 4
    AutoModelForCausalLM.from_pretrained(reference).save_pretrained(opened.snapshots.partial_path(4))
    opened.snapshots.publish(4)
    collector.join(120)
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

    policy = AutoModelForCausalLM.from_pretrained(opened.snapshots.path(2))
    for step, groups in arrived.items():
        samples = [(group["prompt_ids"], *candidates(group, "autoregressive")) for group in groups]
        under_policy = candidate_logps(policy, pack_groups([p for p, _ in samples], [[s] for _, s in samples]))
        under_reference = sum(group["ref_logps"][1] for group in groups)
        assert (under_policy.sum() > under_reference) == (step in (4, 5))


def test_a_reference_that_moves_with_the_policy_scores_the_groups(stream, reference, cluster, tmp_path):
    """Training and sampling together: every third step, the policy is the reference of the groups that follow."""
    opened = stream("moving", refresh_steps=3, refresh_reference=True)
    rows = train_streamed(opened, reference, cluster, tmp_path / "model")
    assert [row["reference_step"] for row in rows] == [0, 0, 0, 3, 3, 3, 6, 6]
    assert [row["sampled_from_step"] for row in rows] == [0, 0, 0, 3, 3, 3, 6, 6]
    checked = [row for row in rows if "expected_loss" in row]
    assert [row["step"] for row in checked] == [1, 4, 7]
    for row in checked:
        assert row["loss"] == pytest.approx(row["expected_loss"], abs=1e-3)
        assert row["gold_drift"] == pytest.approx(0, abs=1e-3)
    assert all(abs(row["gold_drift"]) > 1e-3 for row in rows if row not in checked)


def test_a_step_with_too_few_distinct_responses_raises_an_error_before_any_actor_starts(reference, cluster, tmp_path):
    """Every sixth row has the same response: consecutive rows are fine, but the third step takes only those."""
    table = make_table([[5, 0] if number % 6 == 0 else [6 + number, 0] for number in range(6 * PROMPTS)])
    write_table(tmp_path / "train" / "part-00000.parquet", table)
    config = make_config(negatives={"batch": 3, "meanfield": 0, "truncation": 0})

    def alike_at(wanted):
        return lambda rows: lambda step: list(range(0, rows, 6)) if step == wanted else list(range(PROMPTS))

    with pytest.raises(DataError, match="have 0 different responses"):
        open_stream(config, tmp_path, reference, tmp_path / "stream", alike_at(2))
    open_stream(config, tmp_path, reference, tmp_path / "stream", alike_at(STEPS))


def test_an_error_in_a_kind_is_raised_before_any_actor_starts(stream):
    with pytest.raises(ConfigError, match="no_such_module"):
        stream(negatives={"own": 1}, kinds={"own": "no_such_module:draw"})


@pytest.mark.chaos
def test_a_killed_worker_does_not_change_the_final_weights(stream, reference, cluster, tmp_path, monkeypatch):
    """Two workers, a policy snapshot every second step. One worker is killed at step 5 and the stream is started again."""

    def train(name):
        notices = []
        opened = stream(f"stream-{name}", refresh_steps=2)
        rows = train_streamed(opened, reference, cluster, tmp_path / name, notices)
        assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
        return load_file(tmp_path / name / "model.safetensors"), notices

    undisturbed, notices = train("undisturbed")
    assert notices == []
    (tmp_path / "kills").mkdir()
    # Steps are long enough for the checkpoints of steps 2 and 4 to be stored by then.
    monkeypatch.setattr(trainer, "train_worker", worker_with_kills({("step", 5): 1}, tmp_path / "kills", pause=1.0))
    disturbed, notices = train("disturbed")
    assert notices
    assert all(notice.startswith("workers were lost: resuming from step ") for notice in notices)
    assert [kill.name for kill in (tmp_path / "kills").iterdir()] == ["step-5"]
    assert all(torch.equal(undisturbed[name], disturbed[name]) for name in undisturbed)


def train_streamed(stream, reference, cluster, out, notices=None):
    """Train on the stream into `out`, with its checkpoints beside it. Returns the metrics of every step."""
    task = Task(
        stage="cpo",
        training=stream.config.training,
        objective=ObjectiveConfig(),
        scheduled_sampling=None,
        model=str(reference),
        rows=None,
        validation=None,
        seed=SEED,
        cuda=False,
        threads=1,
        stream=stream,
    )
    rows = {}
    out.mkdir()
    on_notice = pytest.fail if notices is None else notices.append
    trainer.train_model(
        task,
        cluster,
        out.with_name(f"{out.name}-checkpoints"),
        out,
        lambda row: rows.update({row["step"]: row}),
        on_notice,
    )
    return [rows[step] for step in sorted(rows)]
