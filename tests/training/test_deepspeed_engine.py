import importlib
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from cpo_ray.config import TrainingConfig
from cpo_ray.training.deepspeed_engine import (
    deepspeed_config,
    extension_folder,
    load_extension,
    parameter_groups,
    start_engine,
)
from cpo_ray.training.loader import StoredLoader
from cpo_ray.training.loop import training_steps
from cpo_ray.training.rows import TrainingRows
from tests.objective.tiny_models import tiny_architecture
from tests.training.world import make_task, write_groups


def test_the_training_section_becomes_deepspeed_s_configuration():
    training = TrainingConfig(
        zero_stage=2, precision="bf16", clip_norm=0.5, betas=(0.9, 0.95), prompts_per_microbatch=8
    )
    config = deepspeed_config(training, workers=4)
    assert config["zero_optimization"] == {"stage": 2}
    assert config["bf16"] == {"enabled": True}
    assert config["gradient_clipping"] == 0.5
    assert config["optimizer"]["params"]["betas"] == [0.9, 0.95]
    assert config["train_batch_size"] == 64
    assert config["gradient_accumulation_steps"] == 2


def test_only_matrices_have_weight_decay():
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    with_decay, without_decay = parameter_groups(module, 0.05)
    assert ([p.dim() for p in with_decay["params"]], with_decay["weight_decay"]) == ([2], 0.05)
    assert ([p.dim() for p in without_decay["params"]], without_decay["weight_decay"]) == ([1, 1, 1], 0.0)


def test_the_stale_lock_of_a_killed_build_is_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("PATH", os.environ["PATH"])
    stale_lock = extension_folder() / "deepspeed_shm_comm" / "lock"
    assert tmp_path in stale_lock.parents
    stale_lock.parent.mkdir(parents=True)
    stale_lock.touch()
    built_in = []

    def build():
        assert not stale_lock.exists()  # torch would wait for it forever
        built_in.append(os.environ["TORCH_EXTENSIONS_DIR"])
        assert shutil.which("ninja") == str(Path(sys.executable).with_name("ninja"))  # not the system's

    communication = importlib.import_module("deepspeed.comm.torch")
    monkeypatch.setattr(communication, "build_shm_op", build)
    load_extension.cache_clear()
    load_extension()
    load_extension.cache_clear()
    communication.build_shm_op()  # as deepspeed.initialize does: nothing is built, no lock is taken
    assert built_in == [str(stale_lock.parents[1])]
    assert str(extension_folder()) == built_in[0]  # also for a child of this process


@pytest.mark.e2e
@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(("coefficient", "said"), [(0.0, "is off"), (0.1, "is on: 0.1 times")])
def test_the_routers_auxiliary_loss_is_trained_if_it_is_on(coefficient, said, tmp_path):
    tiny_architecture("mixtral").save_pretrained(tmp_path / "mixtral")
    write_groups(tmp_path / "mixtral", tmp_path / "groups")
    settings = {"zero_stage": 3, "activation_checkpointing": True, "steps": 2, "workers": 1, "learning_rate": 1e-2}
    task = make_task(
        tmp_path, head="mixtral", groups=tmp_path / "groups", router_auxiliary_loss=coefficient, **settings
    )
    lines = []
    engine = start_engine(task, lines.append)
    assert [said in line for line in lines] == [True]
    steps = list(training_steps(engine, StoredLoader(TrainingRows.read(task.rows, task), task), task, finished=0))
    assert steps[0].metrics["loss"] == pytest.approx(steps[0].metrics["expected_loss"], abs=2e-3)
    losses = [step.metrics.get("router_loss") for step in steps]
    if coefficient:
        assert all(1.5 < loss < 4 for loss in losses)  # top-k of 2 if balanced, 4 experts
    else:
        assert losses == [None, None]
