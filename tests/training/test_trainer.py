"""Real Ray Train, real DeepSpeed and real worker processes, with injected failures."""

import errno
import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
import ray
import torch
import torch.distributed as dist
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from transformers import AutoTokenizer

from cpo_ray.config import AdapterConfig
from cpo_ray.errors import Preempted, TrainingError
from cpo_ray.objective.pretrained import load_model
from cpo_ray.training import trainer
from tests.training.runs import (
    STEPS,
    assert_same_weights,
    checkpoints,
    failing_storage,
    kill_driver,
    scratch,
    train,
    training_workers,
)
from tests.training.world import make_task, worker_with_kills, write_groups
from tests.waiting import eventually

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def undisturbed(world, cluster, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "model"

    def checkpoints_wait_for_metrics(metrics):
        """Otherwise a driver that is killed now leaves a checkpoint without the metrics of its steps."""
        time.sleep(0.1)
        assert not [finished for finished in checkpoints(out) if finished >= metrics["step"]]

    return out, train(world, cluster, out, on_metrics=checkpoints_wait_for_metrics)


def test_training_writes_a_hugging_face_model(undisturbed):
    out, losses = undisturbed
    assert list(losses) == list(range(1, STEPS + 1))
    assert losses[STEPS] < losses[1]
    assert load_model(out, "fp32").num_parameters() > 0
    assert AutoTokenizer.from_pretrained(out).eos_token == "<|endoftext|>"


def test_losses_do_not_depend_on_workers_or_zero_stage(world, cluster, undisturbed, tmp_path):
    """ZeRO 0 to 3 on two workers and on one, and from two to one after five steps, ten steps each.

    With tied and untied heads, and an adapter.
    """
    kinds = {
        "tied": {},
        "untied": {"head": "untied"},
        "adapter": {"adapter": AdapterConfig(rank=4, alpha=8.0)},
    }
    tasks = {
        f"{kind} zero-{stage}": make_task(world, zero_stage=stage, steps=10, **settings)
        for kind, settings in kinds.items()
        for stage in range(4)
    }

    def train_each(folder):  # a closure, because workers cannot import the tests
        from ray.train import Checkpoint

        from cpo_ray.training.checkpoint import Saved, load_checkpoint, write_shard
        from cpo_ray.training.deepspeed_engine import start_engine
        from cpo_ray.training.loader import StoredLoader
        from cpo_ray.training.loop import training_steps
        from cpo_ray.training.rows import TrainingRows

        two = dist.get_world_size() == 2
        losses = {}
        for name, task in tasks.items():
            rows, checkpoint = TrainingRows.read(task.rows, task), Path(folder) / name
            engine = start_engine(task, print)
            losses[name] = []
            for step in training_steps(engine, StoredLoader(rows, task), task, 0):
                losses[name].append(step.metrics["loss"])
                if two and step.number == 5:
                    write_shard(engine, checkpoint)
            if two:
                continue
            saved = Saved(Checkpoint.from_directory(checkpoint), finished=5, workers=2)
            engine = start_engine(task, print, universal=saved.needs_resharding(task.training.zero_stage))
            load_checkpoint(engine, saved)
            losses[f"{name} from two"] = [
                step.metrics["loss"] for step in training_steps(engine, StoredLoader(rows, task), task, saved.finished)
            ]
        if dist.get_rank() == 0:
            (Path(folder) / f"{dist.get_world_size()}.json").write_text(json.dumps(losses))

    for workers in (2, 1):
        scaling = ScalingConfig(num_workers=workers)
        environment = ray.train.RunConfig(
            storage_path=str(tmp_path), worker_runtime_env={"env_vars": {"DS_ACCELERATOR": "cpu"}}
        )
        TorchTrainer(train_each, train_loop_config=str(tmp_path), scaling_config=scaling, run_config=environment).fit()
    two, one = (json.loads((tmp_path / f"{workers}.json").read_text()) for workers in (2, 1))
    first_ten = [undisturbed[1][step] for step in range(1, 11)]
    for name in tasks:
        plain = one[f"{name.split()[0]} zero-0"]
        assert one[name] == pytest.approx(plain, abs=1e-4), name
        assert two[name] == pytest.approx(plain, abs=1e-4), name
        assert one[f"{name} from two"] == pytest.approx(plain[5:], abs=1e-4), name
        if name.startswith("tied"):
            assert plain == pytest.approx(first_ten, abs=1e-4), name


def test_three_killed_workers_do_not_change_the_result(world, cluster, undisturbed, tmp_path, monkeypatch):
    """Between checkpoints, right after one whose upload may still be running, and in the middle of writing one."""
    kills = {("step", 8): 1, ("step", 11): 0, ("checkpoint", 15): 1}
    monkeypatch.setattr(trainer, "train_worker", worker_with_kills(kills, tmp_path))
    received, notices = [], []
    losses = train(
        world, cluster, tmp_path / "model", on_metrics=lambda metrics: received.append(metrics["step"]), notices=notices
    )
    assert [notice.rpartition(" ")[0] for notice in notices] == ["workers were lost: resuming from step"] * 3
    assert all((tmp_path / f"{what}-{step}").exists() for what, step in kills)
    assert len(received) > len(set(received)) == STEPS  # steps after the last checkpoint were taken twice
    assert losses == undisturbed[1]
    assert_same_weights(undisturbed[0], tmp_path / "model")


@pytest.mark.chaos
def test_failures_are_counted_from_the_last_checkpoint(world, cluster, undisturbed, tmp_path, monkeypatch):
    """Three failures although one is allowed, with a new checkpoint between any two."""
    kills = {("step", 2): 1, ("step", 7): 0, ("step", 12): 1}
    monkeypatch.setattr(trainer, "train_worker", worker_with_kills(kills, tmp_path))
    train(world, cluster, tmp_path / "model", notices=[], max_failures=1)
    assert all((tmp_path / f"{what}-{step}").exists() for what, step in kills)
    assert_same_weights(undisturbed[0], tmp_path / "model")


@pytest.mark.chaos
def test_a_worker_killed_at_every_step_does_not_change_the_result(world, cluster, undisturbed, tmp_path, monkeypatch):
    kills = {("step", step): step % 2 for step in range(1, STEPS + 1)}
    monkeypatch.setattr(trainer, "train_worker", worker_with_kills(kills, tmp_path))
    losses = train(world, cluster, tmp_path / "model", notices=[], max_failures=STEPS)
    assert all((tmp_path / f"{what}-{step}").exists() for what, step in kills)
    assert losses == undisturbed[1]
    assert_same_weights(undisturbed[0], tmp_path / "model")


def test_a_driver_killed_three_times_does_not_change_the_result(world, undisturbed, tmp_path):
    kill_driver(world, tmp_path, [("step", 8, 1), ("step", 11, 0), ("checkpoint", 15, 1)])
    assert_same_weights(undisturbed[0], tmp_path / "model")


@pytest.mark.chaos
def test_a_driver_killed_at_every_step_does_not_change_the_result(world, undisturbed, tmp_path):
    kill_driver(world, tmp_path, [("step", step, step % 2) for step in range(1, STEPS + 1)])
    assert_same_weights(undisturbed[0], tmp_path / "model")


def test_sigterm_saves_and_another_number_of_workers_resumes(world, cluster, undisturbed, tmp_path, monkeypatch):
    """SIGTERM saves at once; then the newest checkpoint is damaged; the rest runs on one worker instead of two."""
    steps = []

    def sigterm_at_eight(metrics):
        steps.append(metrics["step"])
        if metrics["step"] == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(trainer, "train_worker", worker_with_kills({}, tmp_path, pause=0.4))
    longer = {"checkpoint_every": 7, "zero_stage": 2}
    with pytest.raises(Preempted, match=r"saved at step \d+\. Run the same command again"):
        train(world, cluster, tmp_path / "model", on_metrics=sigterm_at_eight, **longer)
    kept = checkpoints(tmp_path / "model")
    *_, before, saved = sorted(kept)
    assert before == 7 < saved < 14  # an extra one, between two ordinary ones
    shard = next(kept[saved].glob("engine/*optim_states.pt"))
    shard.write_bytes(shard.read_bytes()[:-100])

    monkeypatch.undo()
    notices = []
    losses = train(world, cluster, tmp_path / "model", notices=notices, workers=1, **longer)
    why = f"engine/{shard.name} has changed since it was written"
    assert notices == [f"the checkpoint of step {saved} is damaged ({why}): resuming from the one before"]
    assert list(losses) == list(range(before + 1, STEPS + 1))
    assert list(losses.values()) == pytest.approx([undisturbed[1][step] for step in losses], abs=1e-4)


def test_the_best_checkpoint_becomes_the_model(world, cluster, tmp_path):
    """A growing learning rate: the validation loss is lowest early, and that model becomes the result."""
    validation = {}

    def record(metrics):
        if "validation" in metrics:
            validation[metrics["step"]] = metrics["validation"]["loss"]

    settings = {"steps": 12, "checkpoint_every": 3, "learning_rate": 0.05, "warmup_steps": 12, "keep_checkpoints": 1}
    train(
        world,
        cluster,
        tmp_path / "model",
        on_metrics=record,
        validation=world / "groups-tied",
        validation_rows=16,
        final="best",
        **settings,
    )
    assert sorted(validation) == [3, 6, 9, 12]
    best = min(validation, key=validation.get)
    kept = checkpoints(tmp_path / "model")
    assert {best, 12} == set(kept)
    assert_same_weights(kept[best] / "model", tmp_path / "model")


def test_a_refusal_is_raised_and_not_retried(world, cluster, tmp_path):
    def scaled(rows):
        return [row | {"ref_logps": [1.1 * logp for logp in row["ref_logps"]]} for row in rows]

    write_groups(world / "tied", tmp_path / "groups", change=scaled)
    received = []
    with pytest.raises(TrainingError, match=r"refuses to continue: the first CPO loss is .* but must be 8\.52"):
        train(world, cluster, tmp_path / "model", groups=tmp_path / "groups", on_metrics=received.append)
    assert received == []


def test_an_oom_on_one_worker_ends_all_and_names_what_to_lower(world, cluster, tmp_path, monkeypatch):
    def train_worker(settings):  # a closure, because workers cannot import the tests
        from cpo_ray.training import loop, worker

        set_rate = loop.set_learning_rate

        def out_of_memory(engine, rate):
            if engine.global_steps == 1 and dist.get_rank() == 1:
                torch.empty(2**50)
            set_rate(engine, rate)

        loop.set_learning_rate = out_of_memory
        worker.train_worker(settings)

    monkeypatch.setattr(trainer, "train_worker", train_worker)
    received = []
    with pytest.raises(TrainingError, match=r"out of memory: .*Lower training\.prompts_per_microbatch \(now 2\), or"):
        train(world, cluster, tmp_path / "model", on_metrics=received.append)
    assert len(received) == 1


@pytest.mark.chaos
def test_a_storage_outage_repeats_no_step(world, cluster, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "train_worker", failing_storage(errno.EIO, times=2))
    received = []
    train(world, cluster, tmp_path / "model", on_metrics=lambda metrics: received.append(metrics["step"]))
    assert received == list(range(1, STEPS + 1))
    assert_same_weights(undisturbed[0], tmp_path / "model")


@pytest.fixture(scope="module")
def full(world, cluster, tmp_path_factory):
    """The error of a training whose storage is full, and the folder for its model."""
    out = tmp_path_factory.mktemp("full") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "train_worker", failing_storage(errno.ENOSPC, times=9))
        with pytest.raises(TrainingError) as error:
            train(world, cluster, out)
    return str(error.value), out


def test_full_storage_is_an_error_with_advice(full):
    message, out = full
    assert re.search(r"no room for a checkpoint: .*No space left.* make room", message)
    assert list(out.iterdir()) == []


@pytest.mark.chaos
def test_training_resumes_once_there_is_room(world, cluster, undisturbed, full):
    train(world, cluster, full[1])
    assert_same_weights(undisturbed[0], full[1])


def test_no_worker_and_no_temporary_folder_is_left(cluster, tmp_path_factory):
    """Ray Train returns before all of its processes have ended, so this waits."""
    assert eventually(lambda: training_workers() == [])
    assert eventually(lambda: ray.available_resources().get("CPU") == cluster.local_cpus)
    trainings = [folder for folder in tmp_path_factory.getbasetemp().rglob("*checkpoints") if folder.is_dir()]
    assert trainings
    assert scratch(trainings) == []
