"""Trainings in a test's cluster: start one, look at its checkpoints and workers, and let its storage fail."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from cpo_ray.training import trainer
from cpo_ray.training.checkpoint import scratch_prefix
from tests.training.world import make_task

STEPS = 20
ROOT = Path(__file__).parents[2]


def train(world, cluster, out, *, on_metrics=lambda _: None, notices=None, **settings):
    """Train the model into `out`, with the checkpoints beside it, and return losses by step. Resumes from what is there."""
    losses = {}

    def record(metrics):
        if "loss" in metrics:
            losses[metrics["step"]] = metrics["loss"]
        on_metrics(metrics)

    out.mkdir(exist_ok=True)
    on_notice = pytest.fail if notices is None else notices.append
    task = make_task(world, **{"steps": STEPS, **settings})
    trainer.train_model(task, cluster, out.with_name(f"{out.name}-checkpoints"), out, record, on_notice)
    return losses


def assert_same_weights(one, other):
    """Bit for bit."""
    one, other = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def checkpoints(out):
    """The stored checkpoints: optimizer steps done -> folder."""
    cursors = out.with_name(f"{out.name}-checkpoints").glob("checkpoint_*/cursor.json")
    return {json.loads(cursor.read_text())["finished"]: cursor.parent for cursor in cursors}


def training_workers():
    """Ray Train's worker processes of this test's cluster."""
    own = psutil.Process().children(recursive=True)
    return [process for process in own if any("RayTrainWorker" in argument for argument in command_line(process))]


def command_line(process):
    """Its arguments; none if it has just ended."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def scratch(trainings):
    """Temporary folders of these trainings. Others may be running on this machine."""
    temporary = Path(tempfile.gettempdir())
    return [left for folder in trainings for left in temporary.glob(f"{scratch_prefix(str(folder))}*")]


def kill_driver(world, folder, kills):
    """Run drivers in turn until all kills have happened and one finishes. Asserts that each was killed."""
    driver = [sys.executable, "-m", "tests.training.driver", world, folder, json.dumps(kills)]
    with (folder / "log").open("w+") as log:  # not a pipe: some of Ray's agents outlive their cluster and keep it open
        ends = [subprocess.run(driver, stdout=log, stderr=log, cwd=ROOT).returncode for _ in range(len(kills) + 1)]
        log.seek(0)
        assert ends == [-signal.SIGKILL] * len(kills) + [0], log.read()


def failing_storage(number, times):
    """train_worker with storage of which the first `times` uploads of each worker fail with this errno."""

    def train_worker(settings):  # a closure, because workers cannot import the tests
        from ray.train.v2._internal.execution.storage import StorageContext

        from cpo_ray.training import worker

        persist, failed = StorageContext.persist_current_checkpoint, []

        def failing(self, checkpoint, name):
            if len(failed) < times:
                failed.append(name)
                raise OSError(number, os.strerror(number))
            return persist(self, checkpoint, name)

        StorageContext.persist_current_checkpoint = failing
        worker.train_worker(settings)

    return train_worker
