"""Streamed groups in the loop, in this process as the only worker."""

import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM

from cpo_ray.artifacts import read_table
from cpo_ray.errors import ClusterError, DataError, TrainingError
from cpo_ray.inference.policy_snapshots import PolicyShelf
from cpo_ray.training.batch_order import Batches
from cpo_ray.training.deepspeed_engine import start_engine
from cpo_ray.training.loader import Stored, Streamed, open_source
from cpo_ray.training.loop import training_steps
from cpo_ray.training.snapshots import publish, return_to
from cpo_ray.training.task import Refusal, Rows
from tests.training.world import make_task

pytestmark = [pytest.mark.usefixtures("alone"), pytest.mark.e2e]


class Replay:
    """A stream of the world's stored groups, in the order of the stored training."""

    def __init__(self, world, task, shelf=None, fault=None):
        self.rows = read_table(world / "groups-tied").to_pylist()
        self.order, self.steps = (
            Batches(len(self.rows), task.training.prompts_per_step, task.seed).at,
            task.training.steps,
        )
        self.shelf = shelf or PolicyShelf(world, None, self.steps)
        self.fault = fault

    def groups(self, first):
        for step in range(first, self.steps):
            if self.fault is not None:
                raise self.fault
            yield step, [self.rows[row] for row in self.order(step)]


def streamed(world, *, steps=4, shelf=None, fault=None, **settings):
    task = make_task(world, workers=1, steps=steps, **settings)
    return dataclasses.replace(task, rows=None, stream=Replay(world, task, shelf, fault))


def test_a_stream_of_the_same_groups_trains_to_the_same_weights(world):
    losses, weights = [], []
    for task in (make_task(world, workers=1, steps=4), streamed(world)):
        engine = start_engine(task, pytest.fail)
        with open_source(task, 0) as source:
            assert isinstance(source, Streamed if task.stream else Stored)
            steps = list(training_steps(engine, source, task, 0))
        losses.append([step.metrics["loss"] for step in steps])
        weights.append([parameter.detach().clone() for parameter in engine.module.parameters()])
        assert all(0 <= step.metrics["data_seconds"] < step.metrics["seconds"] for step in steps)
    assert losses[0] == losses[1]
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_a_training_that_goes_on_draws_from_the_step_it_stopped_at(world):
    task = streamed(world)
    with open_source(task, 2) as source:
        batch = source.at(2)
    stored = Rows.read(world / "groups-tied", task)
    assert batch.rows.ids == [stored.ids[row] for row in Batches(32, 8, task.seed).at(2)]
    assert batch.numbers == list(range(8))
    assert batch.kinds == stored.every_kind


def test_bad_rows_are_a_refusal_and_dead_actors_are_not(world):
    for fault, error in (
        (DataError("row 7 is bad"), Refusal),
        (ClusterError("an actor could not be kept alive"), ClusterError),
    ):
        with open_source(streamed(world, fault=fault), 0) as source, pytest.raises(error, match=str(fault)):
            source.at(0)


def test_another_step_s_groups_are_not_taken(world):
    task = streamed(world)
    with open_source(task, 0) as source, pytest.raises(TrainingError, match="step 0 where those of step 1 were due"):
        source.at(1)


def test_a_policy_is_put_on_the_shelf_when_it_will_be_sampled_from(world, tmp_path):
    shelf = PolicyShelf(tmp_path, 2, 8)
    task = streamed(world, steps=8, shelf=shelf, checkpoint_every=1, keep_checkpoints=1)
    engine = start_engine(task, pytest.fail)
    with open_source(task, 0) as source:
        for step in training_steps(engine, source, task, 0):
            publish(engine, task, step.number)
            if step.number == 4:
                policy = {name: tensor.clone() for name, tensor in engine.module.model.state_dict().items()}
    assert sorted(place.name for place in tmp_path.iterdir()) == ["after-000002", "after-000004"]
    written = AutoModelForCausalLM.from_pretrained(shelf.place(4)).state_dict()
    assert policy.keys() == written.keys()
    assert all(torch.equal(policy[name], written[name]) for name in policy)


def test_a_training_that_goes_on_puts_its_policy_back_and_refuses_without_an_older_one(world, tmp_path):
    shelf = PolicyShelf(tmp_path, 2, 12)
    task = streamed(world, steps=12, shelf=shelf)
    engine = start_engine(task, pytest.fail)
    return_to(engine, task, 2)
    assert shelf.place(2).is_dir()
    shelf.place(6).mkdir()  # of a life that went further
    return_to(engine, task, 4)
    assert sorted(place.name for place in tmp_path.iterdir()) == ["after-000002", "after-000004"]
    shelf.keep(12, 12)
    with pytest.raises(Refusal, match=r"the policy of step 2, .* after step 4 are sampled, is gone from"):
        return_to(engine, task, 4)
