import contextlib
from typing import Any

import pytest

from cpo_ray.artifacts import read_jsonl
from cpo_ray.cluster.session import LazyRay
from cpo_ray.config import RunConfig
from cpo_ray.errors import ArtifactError, Preempted
from cpo_ray.run_directory import open_run
from cpo_ray.stages import perform
from cpo_ray.training import trainer


def test_a_model_s_curve_is_that_of_its_own_configuration(tmp_path, monkeypatch):
    """Beta 5, then 1, then 5 again: the third time its checkpoints are there, and no step is taken."""

    def train(task, cluster, checkpoints, out, on_step, on_notice, told_to_end):
        done = checkpoints / "done"
        if not done.exists():
            on_step({"stage": "cpo", "step": 1, "loss": task.objective.beta})
        done.touch()
        return {}

    monkeypatch.setattr(trainer, "train_model", train)
    for beta in (5.0, 1.0, 5.0):
        with ready_for_cpo(tmp_path, monkeypatch, beta) as run:
            perform("cpo", run)
        assert [row["loss"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [beta]


def test_told_to_end_after_the_last_step_a_stage_keeps_its_model(tmp_path, monkeypatch):
    trained: list[Any] = []

    def train(task, cluster, checkpoints, out, on_step, on_notice, told_to_end):
        trained.append(out)
        told_to_end.set()
        return {}

    monkeypatch.setattr(trainer, "train_model", train)
    with ready_for_cpo(tmp_path, monkeypatch) as run:
        with pytest.raises(Preempted, match="stage `cpo` is finished; the same command goes on"):
            perform("cpo", run)
        perform("cpo", run)
    assert len(trained) == 1


def test_a_pretrained_model_with_two_sets_of_weights_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(LazyRay, "ensure", lambda *_: pytest.fail("started a cluster"))
    model = tmp_path / "model"
    model.mkdir()
    for name in ("model.safetensors", "model-00001-of-00002.safetensors"):
        (model / name).write_bytes(b"")
    config = RunConfig.model_validate({"name": "x", "model": {"path": str(model)}, "tracking": {"tensorboard": False}})
    with open_run(config, tmp_path / "run", accept_changes=False) as run:
        run.make("data", {}, lambda _: {})
        with pytest.raises(ArtifactError, match="holds two sets of weights"):
            perform("reference", run)


@contextlib.contextmanager
def ready_for_cpo(root, monkeypatch, beta=5.0):
    """A run whose stages before `cpo` are done."""
    monkeypatch.setattr(LazyRay, "ensure", lambda *_: None)
    config = RunConfig.model_validate({"name": "x", "objective": {"beta": beta}, "tracking": {"tensorboard": False}})
    with open_run(config, root, accept_changes=True) as run:
        for needed in ("models/reference", "groups/train"):
            run.make(needed, {}, lambda _: {})
        yield run
