"""Trainings of an adapter in this process, as the only worker. test_trainer runs them under Ray Train."""

import dataclasses
import math

import pytest
import torch
from safetensors.torch import load_file

from cpo_ray.config import AdapterConfig
from cpo_ray.objective.adapters import saved_base
from cpo_ray.objective.pretrained import load_adapted, load_model
from cpo_ray.records import ADAPTER_WEIGHTS
from cpo_ray.training.adapter_merging import merge_adapter
from cpo_ray.training.checkpoint import read_shard, write_shard
from cpo_ray.training.deepspeed_engine import export_policy, start_engine
from cpo_ray.training.loader import StoredLoader
from cpo_ray.training.loop import training_steps
from cpo_ray.training.rows import TrainingRows
from cpo_ray.training.validation import validate
from tests.training.runs import assert_same_weights
from tests.training.world import make_task, write_groups

pytestmark = [pytest.mark.usefixtures("alone"), pytest.mark.e2e]


def adapter_task(world, adapter, **settings):
    config = AdapterConfig(**{"rank": 4, "alpha": 8.0, **adapter})
    return make_task(world, workers=1, adapter=config, **{"steps": 4, "learning_rate": 1e-2, **settings})


def steps_of(engine, task, finished=0):
    loader = StoredLoader(TrainingRows.read(task.rows, task), task)
    return training_steps(engine, loader, task, finished)


def train(task, notices=None):
    engine = start_engine(task, (notices if notices is not None else []).append)
    return [step.metrics["loss"] for step in steps_of(engine, task)], engine


def test_a_training_of_an_adapter(world, tmp_path):
    """It starts as the reference and moves the adapter alone; its files are the merged model, and the adapter."""
    notices, task = [], adapter_task(world, {})
    losses, engine = train(task, notices)
    assert losses[0] == pytest.approx(math.lgamma(8), abs=1e-3)
    assert losses[-1] < losses[0]
    # 2 layers, rank 4: queries, keys, values and output 32 + 32 each, three feed-forward matrices 32 + 64 each.
    assert (
        "14 layers (q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj): 4,352 parameters are trained"
        in notices[0]
    )
    assert set(engine.module.state_dict()) == {name for name, p in engine.module.named_parameters() if p.requires_grad}

    export_policy(engine, task, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.safetensors"))
    assert merge_adapter(tmp_path / "out", tmp_path / "out") == 0.0
    base, merged = load_file(world / "tied" / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert base.keys() == merged.keys()
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed == {name for name in base if "proj" in name}
    applied, whole = load_adapted(tmp_path / "out", "fp32"), load_model(tmp_path / "out", "fp32")
    tokens = torch.arange(1, 40)[None]
    with torch.no_grad():
        assert (applied(tokens).logits - whole(tokens).logits).abs().max() < 1e-5

    export_policy(engine, task, tmp_path / "snapshot", whole=True)
    assert_same_weights(tmp_path / "snapshot", tmp_path / "out")
    assert saved_base(tmp_path / "snapshot") == str(world / "tied")


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_cpo_goes_on_with_the_adapter_of_the_reference(world, tmp_path, quantize):
    """Scores come from the base with its adapter, so the first loss is log 7! in bf16 and in 4 bits too."""
    if quantize is not None:
        pytest.importorskip("bitsandbytes", reason="nf4 needs bitsandbytes, which is in the CUDA set")
    adapter, settings = {"quantize": quantize}, {"precision": "bf16" if quantize is None else "fp32", "zero_stage": 2}
    reference = dataclasses.replace(adapter_task(world, adapter, objective=False, **settings), continue_adapter=False)
    _, engine = train(reference)
    export_policy(engine, reference, tmp_path / "reference")
    assert saved_base(tmp_path / "reference") == str(world / "tied")

    write_groups(tmp_path / "reference", tmp_path / "groups", precision=settings["precision"])
    task = adapter_task(world, adapter, groups=tmp_path / "groups", **settings)
    task = dataclasses.replace(task, model=str(tmp_path / "reference"))
    losses, engine = train(task)
    assert losses[0] == pytest.approx(math.lgamma(8), abs=1e-3 if quantize else 0.3)
    export_policy(engine, task, tmp_path / "cpo")
    assert saved_base(tmp_path / "cpo") == str(world / "tied")
    files = [load_file(tmp_path / name / "adapter" / ADAPTER_WEIGHTS) for name in ("reference", "cpo")]
    assert all(
        0 < (files[0][name] - files[1][name]).abs().max() < 0.05 for name in files[0]
    )  # 4 steps of AdamW at 0.01

    merge_adapter(tmp_path / "reference", tmp_path / "reference")
    another = dataclasses.replace(task, continue_adapter=False)  # of the merged weights
    export_policy(start_engine(another, lambda _: None), another, tmp_path / "another")
    assert saved_base(tmp_path / "another") == str(tmp_path / "reference")


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_training_resumes_bit_for_bit(world, tmp_path, zero_stage):
    """With dropout, whose draws are those of the step, and a head that is not tied under ZeRO 3."""
    head = "untied" if zero_stage == 3 else "tied"
    task = adapter_task(world, {"dropout": 0.2}, head=head, zero_stage=zero_stage)
    engine, losses = start_engine(task, lambda _: None), []
    for step in steps_of(engine, task):
        losses.append(step.metrics["loss"])
        if step.number == 2:
            write_shard(engine, tmp_path / "checkpoint")
    export_policy(engine, task, tmp_path / "once", whole=True)
    again = start_engine(task, lambda _: None)
    read_shard(again, tmp_path / "checkpoint")
    assert [step.metrics["loss"] for step in steps_of(again, task, finished=2)] == losses[2:]
    export_policy(again, task, tmp_path / "resumed", whole=True)
    assert_same_weights(tmp_path / "once", tmp_path / "resumed")
    stored = sum(file.stat().st_size for file in (tmp_path / "checkpoint" / "engine").iterdir())
    assert stored < 130_000  # 4,352 parameters with Adam's moments; all 33,216 would take 400 kB


def test_dropout_of_an_adapter_is_in_training_steps_alone(world, tmp_path):
    plain, dropping = adapter_task(world, {}), adapter_task(world, {"dropout": 0.5})
    (first, *rest), engine = train(dropping)
    losses, _ = train(plain)
    assert first == pytest.approx(losses[0], abs=1e-3)  # B is zero
    assert rest != losses[1:]
    rows = TrainingRows.read(dropping.rows, dropping)
    assert validate(engine, rows, dropping) == validate(engine, rows, dropping)
    assert [name for name, module in engine.module.named_modules() if module.training and "lora_dropout" in name]


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_activations_that_are_computed_again_change_nothing(world, zero_stage):
    """Frozen embeddings need no gradient, with dropout that is drawn again as it was."""
    kept, again = (
        adapter_task(world, {"dropout": 0.2}, zero_stage=zero_stage, activation_checkpointing=checkpointing)
        for checkpointing in (False, True)
    )
    losses, _ = train(kept)
    assert train(again)[0] == pytest.approx(losses, abs=1e-5)
