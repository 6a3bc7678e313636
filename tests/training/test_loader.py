"""Streamed groups in the loop, in this process as the only worker."""

import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM

from cpo_ray.artifacts import read_table
from cpo_ray.errors import ClusterError, DataError, TrainingError
from cpo_ray.inference.policy_snapshots import PolicySnapshots
from cpo_ray.training.batch_order import BatchOrder
from cpo_ray.training.deepspeed_engine import start_engine
from cpo_ray.training.loader import StoredLoader, StreamLoader, open_loader
from cpo_ray.training.loop import training_steps
from cpo_ray.training.rows import TrainingRows
from cpo_ray.training.snapshots import publish_snapshot, restore_snapshots
from cpo_ray.training.task import Refusal
from tests.training.world import make_task

pytestmark = [pytest.mark.usefixtures("alone"), pytest.mark.e2e]


class Replay:
    """A stream of the world's stored groups, in the order of the stored training."""

    def __init__(self, world, task, snapshots=None, fault=None):
        self.rows = read_table(world / "groups-tied").to_pylist()
        self.order, self.steps = (
            BatchOrder(len(self.rows), task.training.prompts_per_step, task.seed).at,
            task.training.steps,
        )
        self.snapshots = snapshots or PolicySnapshots(world, None, self.steps)
        self.fault = fault

    def groups(self, first):
        for step in range(first, self.steps):
            if self.fault is not None:
                raise self.fault
            yield step, [self.rows[row] for row in self.order(step)]


def streamed(world, *, steps=4, snapshots=None, fault=None, **settings):
    task = make_task(world, workers=1, steps=steps, **settings)
    return dataclasses.replace(task, rows=None, stream=Replay(world, task, snapshots, fault))


def test_a_stream_of_the_same_groups_trains_to_the_same_weights(world):
    losses, weights = [], []
    for task in (make_task(world, workers=1, steps=4), streamed(world)):
        engine = start_engine(task, pytest.fail)
        with open_loader(task, 0) as loader:
            assert isinstance(loader, StreamLoader if task.stream else StoredLoader)
            steps = list(training_steps(engine, loader, task, 0))
        losses.append([step.metrics["loss"] for step in steps])
        weights.append([parameter.detach().clone() for parameter in engine.module.parameters()])
        assert all(0 <= step.metrics["data_seconds"] < step.metrics["seconds"] for step in steps)
    assert losses[0] == losses[1]
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_a_resumed_training_loads_the_batch_of_its_next_step(world):
    task = streamed(world)
    with open_loader(task, 2) as loader:
        batch = loader.load(2)
    stored = TrainingRows.read(world / "groups-tied", task)
    assert batch.rows.ids == [stored.ids[row] for row in BatchOrder(32, 8, task.seed).at(2)]
    assert batch.numbers == list(range(8))
    assert batch.kinds == stored.every_kind


def test_invalid_rows_are_a_refusal_and_dead_actors_are_not(world):
    for fault, error in (
        (DataError("row 7 is bad"), Refusal),
        (ClusterError("an actor could not be kept alive"), ClusterError),
    ):
        with open_loader(streamed(world, fault=fault), 0) as loader, pytest.raises(error, match=str(fault)):
            loader.load(0)


def test_the_groups_of_another_step_are_an_error(world):
    task = streamed(world)
    with open_loader(task, 0) as loader, pytest.raises(TrainingError, match="step 0 instead of step 1"):
        loader.load(1)


def test_a_snapshot_is_published_if_it_will_be_sampled_from(world, tmp_path):
    snapshots = PolicySnapshots(tmp_path, 2, 8)
    task = streamed(world, steps=8, snapshots=snapshots, checkpoint_every=1, keep_checkpoints=1)
    engine = start_engine(task, pytest.fail)
    with open_loader(task, 0) as loader:
        for step in training_steps(engine, loader, task, 0):
            publish_snapshot(engine, task, step.number)
            if step.number == 4:
                policy = {name: tensor.clone() for name, tensor in engine.module.model.state_dict().items()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["after-000002", "after-000004"]
    written = AutoModelForCausalLM.from_pretrained(snapshots.path(4)).state_dict()
    assert policy.keys() == written.keys()
    assert all(torch.equal(policy[name], written[name]) for name in policy)


def test_a_moving_reference_that_did_not_score_the_groups_is_refused(world, tmp_path):
    """The replayed groups have the first reference's scores: right at step 1, wrong when the policy becomes the reference."""
    snapshots = PolicySnapshots(tmp_path, 2, 4, moves_reference=True)
    task = streamed(world, snapshots=snapshots)
    engine = start_engine(task, pytest.fail)
    with open_loader(task, 0) as loader:
        steps = training_steps(engine, loader, task, 0)
        first, second = next(steps), next(steps)
        assert (first.metrics["reference_step"], second.metrics["reference_step"]) == (0, 0)
        assert "expected_loss" in first.metrics
        assert "expected_loss" not in second.metrics
        assert "kl" in second.metrics  # its autoregressive negatives are samples of the reference
        with pytest.raises(Refusal, match=r"step 3, under a new reference: the first CPO loss is .* but must be"):
            next(steps)


def test_a_resumed_training_restores_its_snapshot_and_refuses_without_an_older_one(world, tmp_path):
    snapshots = PolicySnapshots(tmp_path, 2, 12)
    task = streamed(world, steps=12, snapshots=snapshots)
    engine = start_engine(task, pytest.fail)
    restore_snapshots(engine, task, 2)
    assert snapshots.path(2).is_dir()
    snapshots.path(6).mkdir()  # stale: from steps that are taken again
    restore_snapshots(engine, task, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["after-000002", "after-000004"]
    snapshots.prune(12, 12)
    with pytest.raises(Refusal, match=r"the policy snapshot of step 2, .* after step 4 are sampled, is missing from"):
        restore_snapshots(engine, task, 4)
