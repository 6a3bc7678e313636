"""Real Ray Train, real DeepSpeed, real worker processes, and what a bad night does to them."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import ray
import torch
import torch.distributed as dist
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from safetensors.torch import load_file
from transformers import AutoTokenizer

from cpo_ray.cluster.session import ray_cluster
from cpo_ray.config import ClusterConfig
from cpo_ray.errors import Preempted, TrainingError
from cpo_ray.training import trainer
from cpo_ray.training.checkpoint import scratch_prefix
from cpo_ray.training.models import load_model
from tests.training.world import make_task, tampered, write_groups
from tests.waiting import eventually

pytestmark = pytest.mark.e2e

STEPS = 20
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster():
    config = ClusterConfig(local_cpus=4, object_store_gib=0.2)
    with ray_cluster(config) as lazy:
        lazy.ensure()
        yield config


def train(world, cluster, out, *, on_step=lambda _: None, notices=None, **settings):
    """Losses by step; the model goes to `out`, the checkpoints beside it. What is there already is continued from."""
    losses = {}

    def hear(metrics):
        if "loss" in metrics:
            losses[metrics["step"]] = metrics["loss"]
        on_step(metrics)

    out.mkdir(exist_ok=True)
    tell = pytest.fail if notices is None else notices.append
    task = make_task(world, **{"steps": STEPS, **settings})
    trainer.train_model(task, cluster, out.with_name(f"{out.name}-checkpoints"), out, hear, tell)
    return losses


def assert_same_weights(one, other):
    """To the bit."""
    one, other = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def checkpoints(out):
    """Those that are kept: optimizer steps done -> folder."""
    cursors = out.with_name(f"{out.name}-checkpoints").glob("checkpoint_*/cursor.json")
    return {json.loads(cursor.read_text())["finished"]: cursor.parent for cursor in cursors}


def training_workers():
    """Ray Train's worker processes of this test's cluster."""
    mine = psutil.Process().children(recursive=True)
    return [process for process in mine if any("RayTrainWorker" in word for word in words(process))]


def words(process):
    """Its command line; none where it has just ended."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def scratch(trainings):
    """Temporary folders of these trainings. Others may be under way on this machine."""
    temporary = Path(tempfile.gettempdir())
    return [left for folder in trainings for left in temporary.glob(f"{scratch_prefix(str(folder))}*")]


@pytest.fixture(scope="module")
def undisturbed(world, cluster, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "model"

    def hear_before_it_is_saved(metrics):
        """Or a driver that is killed now leaves a checkpoint without the metrics that led to it."""
        time.sleep(0.1)
        assert not [finished for finished in checkpoints(out) if finished >= metrics["step"]]

    return out, train(world, cluster, out, on_step=hear_before_it_is_saved)


def test_an_ordinary_model_comes_out(undisturbed):
    out, losses = undisturbed
    assert list(losses) == list(range(1, STEPS + 1))
    assert losses[STEPS] < losses[1]
    assert load_model(out, "fp32").num_parameters() > 0
    assert AutoTokenizer.from_pretrained(out).eos_token == "<|endoftext|>"


def test_no_topology_changes_the_losses(world, cluster, undisturbed, tmp_path):
    """ZeRO 0 to 3 on two workers and on one, and from two to one after five steps, tied and untied heads, ten steps each."""
    tasks = {
        f"{head} zero-{stage}": make_task(world, head=head, zero_stage=stage, steps=10)
        for head in ("tied", "untied")
        for stage in range(4)
    }

    def train_each(folder):  # a closure, because workers cannot import the tests
        from ray.train import Checkpoint

        from cpo_ray.training.checkpoint import TAG, Saved, load_checkpoint
        from cpo_ray.training.deepspeed_engine import start_engine
        from cpo_ray.training.loader import Stored
        from cpo_ray.training.loop import training_steps
        from cpo_ray.training.task import Rows

        two = dist.get_world_size() == 2
        losses = {}
        for name, task in tasks.items():
            rows, checkpoint = Rows.read(task.rows, task), Path(folder) / name
            engine = start_engine(task, print)
            losses[name] = []
            for step in training_steps(engine, Stored(rows, task), task, 0):
                losses[name].append(step.metrics["loss"])
                if two and step.number == 5:
                    engine.save_checkpoint(str(checkpoint), tag=TAG)
            if two:
                continue
            saved = Saved(Checkpoint.from_directory(checkpoint), finished=5, workers=2)
            engine = start_engine(task, print, universal=saved.reshards(task.training.zero_stage))
            load_checkpoint(engine, saved)
            losses[f"{name} from two"] = [
                step.metrics["loss"] for step in training_steps(engine, Stored(rows, task), task, saved.finished)
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


def test_three_killed_workers_change_nothing(world, cluster, undisturbed, tmp_path, monkeypatch):
    """Between checkpoints, right after one that may still be on its way, and in the middle of writing one."""
    struck = {("step", 8): 1, ("step", 11): 0, ("checkpoint", 15): 1}
    monkeypatch.setattr(trainer, "train_worker", tampered(struck, tmp_path))
    heard, notices = [], []
    losses = train(
        world, cluster, tmp_path / "model", on_step=lambda metrics: heard.append(metrics["step"]), notices=notices
    )
    assert [notice.rpartition(" ")[0] for notice in notices] == ["workers were lost: going on from step"] * 3
    assert all((tmp_path / f"{what}-{step}").exists() for what, step in struck)
    assert len(heard) > len(set(heard)) == STEPS  # some steps were taken twice, from the last checkpoint on
    assert losses == undisturbed[1]
    assert_same_weights(undisturbed[0], tmp_path / "model")


@pytest.mark.chaos
def test_failures_count_from_checkpoint_to_checkpoint(world, cluster, undisturbed, tmp_path, monkeypatch):
    """Three failures, one is allowed: with a new checkpoint between any two."""
    struck = {("step", 2): 1, ("step", 7): 0, ("step", 12): 1}
    monkeypatch.setattr(trainer, "train_worker", tampered(struck, tmp_path))
    train(world, cluster, tmp_path / "model", notices=[], max_failures=1)
    assert all((tmp_path / f"{what}-{step}").exists() for what, step in struck)
    assert_same_weights(undisturbed[0], tmp_path / "model")


@pytest.mark.chaos
def test_a_worker_killed_at_every_step_changes_nothing(world, cluster, undisturbed, tmp_path, monkeypatch):
    struck = {("step", step): step % 2 for step in range(1, STEPS + 1)}
    monkeypatch.setattr(trainer, "train_worker", tampered(struck, tmp_path))
    losses = train(world, cluster, tmp_path / "model", notices=[], max_failures=STEPS)
    assert all((tmp_path / f"{what}-{step}").exists() for what, step in struck)
    assert losses == undisturbed[1]
    assert_same_weights(undisturbed[0], tmp_path / "model")


def kill_driver(world, folder, struck):
    """One driver after the other, each killed once, until one lives. Asserts that each was killed."""
    driver = [sys.executable, "-m", "tests.training.driver", world, folder, json.dumps(struck)]
    with (folder / "log").open("w+") as log:  # a file: some of Ray's agents outlive their cluster and keep a pipe open
        ends = [subprocess.run(driver, stdout=log, stderr=log, cwd=ROOT).returncode for _ in range(len(struck) + 1)]
        log.seek(0)
        assert ends == [-signal.SIGKILL] * len(struck) + [0], log.read()


def test_a_driver_killed_three_times_changes_nothing(world, undisturbed, tmp_path):
    kill_driver(world, tmp_path, [("step", 8, 1), ("step", 11, 0), ("checkpoint", 15, 1)])
    assert_same_weights(undisturbed[0], tmp_path / "model")


@pytest.mark.chaos
def test_a_driver_killed_at_every_step_changes_nothing(world, undisturbed, tmp_path):
    kill_driver(world, tmp_path, [("step", step, step % 2) for step in range(1, STEPS + 1)])
    assert_same_weights(undisturbed[0], tmp_path / "model")


def test_told_to_end_it_saves_and_goes_on_elsewhere(world, cluster, undisturbed, tmp_path, monkeypatch):
    """SIGTERM saves at once; the newest checkpoint is damaged meanwhile; the rest runs on one worker instead of two."""
    steps = []

    def end_at_eight(metrics):
        steps.append(metrics["step"])
        if metrics["step"] == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(trainer, "train_worker", tampered({}, tmp_path, pause=0.4))
    longer = {"checkpoint_every": 7, "zero_stage": 2}
    with pytest.raises(Preempted, match=r"saved at step \d+; the same command goes on"):
        train(world, cluster, tmp_path / "model", on_step=end_at_eight, **longer)
    kept = checkpoints(tmp_path / "model")
    *_, before, saved = sorted(kept)
    assert before == 7 < saved < 14  # an extra one, between two ordinary ones
    shard = next(kept[saved].glob("engine/*optim_states.pt"))
    shard.write_bytes(shard.read_bytes()[:-100])

    monkeypatch.undo()
    notices = []
    losses = train(world, cluster, tmp_path / "model", notices=notices, workers=1, **longer)
    why = f"engine/{shard.name} has changed since it was written"
    assert notices == [f"the checkpoint of step {saved} is damaged ({why}): going on from the one before"]
    assert list(losses) == list(range(before + 1, STEPS + 1))
    assert list(losses.values()) == pytest.approx([undisturbed[1][step] for step in losses], abs=1e-4)


def test_the_best_checkpoint_becomes_the_model(world, cluster, tmp_path):
    """A learning rate that grows harmful: the validation loss is lowest early, and that model is kept."""
    validation = {}

    def hear(metrics):
        if "validation" in metrics:
            validation[metrics["step"]] = metrics["validation"]["loss"]

    settings = {"steps": 12, "checkpoint_every": 3, "learning_rate": 0.05, "warmup_steps": 12, "keep_checkpoints": 1}
    train(
        world,
        cluster,
        tmp_path / "model",
        on_step=hear,
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


def test_a_refusal_reaches_the_user_and_is_not_retried(world, cluster, tmp_path):
    def scaled(rows):
        return [row | {"ref_logps": [1.1 * logp for logp in row["ref_logps"]]} for row in rows]

    write_groups(world / "tied", tmp_path / "groups", change=scaled)
    heard = []
    with pytest.raises(TrainingError, match=r"refuses to go on: the first CPO loss is .* but must be 8\.52"):
        train(world, cluster, tmp_path / "model", groups=tmp_path / "groups", on_step=heard.append)
    assert heard == []


def test_memory_that_runs_out_on_one_worker_ends_all_and_says_what_to_lower(world, cluster, tmp_path, monkeypatch):
    def train_worker(settings):  # a closure, because workers cannot import the tests
        from cpo_ray.training import loop

        set_rate = loop.set_learning_rate

        def greedy(engine, rate):
            if engine.global_steps == 1 and dist.get_rank() == 1:
                torch.empty(2**50)
            set_rate(engine, rate)

        loop.set_learning_rate = greedy
        loop.train_worker(settings)

    monkeypatch.setattr(trainer, "train_worker", train_worker)
    heard = []
    with pytest.raises(TrainingError, match=r"out of memory: .*Lower training\.prompts_per_microbatch \(now 2\), or"):
        train(world, cluster, tmp_path / "model", on_step=heard.append)
    assert len(heard) == 1


def trouble_with_storage(number, times):
    """train_worker, where the first `times` uploads of each worker fail with this errno."""

    def train_worker(settings):  # a closure, because workers cannot import the tests
        from ray.train.v2._internal.execution.storage import StorageContext

        from cpo_ray.training import loop

        persist, failed = StorageContext.persist_current_checkpoint, []

        def failing(self, checkpoint, name):
            if len(failed) < times:
                failed.append(name)
                raise OSError(number, os.strerror(number))
            return persist(self, checkpoint, name)

        StorageContext.persist_current_checkpoint = failing
        loop.train_worker(settings)

    return train_worker


@pytest.mark.chaos
def test_storage_that_is_away_for_a_while_costs_no_step(world, cluster, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "train_worker", trouble_with_storage(errno.EIO, times=2))
    heard = []
    train(world, cluster, tmp_path / "model", on_step=lambda metrics: heard.append(metrics["step"]))
    assert heard == list(range(1, STEPS + 1))
    assert_same_weights(undisturbed[0], tmp_path / "model")


@pytest.fixture(scope="module")
def full(world, cluster, tmp_path_factory):
    """What a training says whose storage is full, and where it would have put the model."""
    out = tmp_path_factory.mktemp("full") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "train_worker", trouble_with_storage(errno.ENOSPC, times=9))
        with pytest.raises(TrainingError) as told:
            train(world, cluster, out)
    return str(told.value), out


def test_storage_that_is_full_is_told(full):
    told, out = full
    assert re.search(r"no room for a checkpoint: .*No space left.* make room", told)
    assert list(out.iterdir()) == []


@pytest.mark.chaos
def test_once_there_is_room_the_same_command_goes_on(world, cluster, undisturbed, full):
    train(world, cluster, full[1])
    assert_same_weights(undisturbed[0], full[1])


@pytest.mark.parametrize("placement", ["PACK", "SPREAD"])
def test_workers_lie_as_the_configuration_says(world, tmp_path, monkeypatch, placement):
    asked = {}
    monkeypatch.setattr(trainer, "ScalingConfig", lambda **options: asked.update(options) or ScalingConfig(**options))
    monkeypatch.setattr(TorchTrainer, "fit", lambda _: (_ for _ in ()).throw(TrainingError("seen")))
    with pytest.raises(TrainingError, match="seen"):
        train(world, ClusterConfig(local_cpus=4, placement=placement), tmp_path / "model")
    assert asked["placement_strategy"] == placement


def test_nothing_is_left_running(cluster, tmp_path_factory):
    """Ray Train has told the driver how it ended before all of it is taken down."""
    assert eventually(lambda: training_workers() == [])
    assert eventually(lambda: ray.available_resources().get("CPU") == cluster.local_cpus)
    trainings = [folder for folder in tmp_path_factory.getbasetemp().rglob("*checkpoints") if folder.is_dir()]
    assert trainings
    assert scratch(trainings) == []
