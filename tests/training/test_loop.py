"""The training loop in this process, as the only worker. test_trainer runs it under Ray Train."""

import dataclasses
import math

import pytest
import torch

from cpo_ray.config import ModelConfig, ObjectiveConfig, ScheduledSamplingConfig
from cpo_ray.training.deepspeed_engine import start_engine
from cpo_ray.training.loader import StoredLoader
from cpo_ray.training.loop import training_steps
from cpo_ray.training.models import initialize_model
from cpo_ray.training.rows import TrainingRows
from cpo_ray.training.signals import Signals
from cpo_ray.training.task import Refusal
from cpo_ray.training.validation import validate
from tests.training.test_rows import first_three
from tests.training.world import make_task, write_groups

pytestmark = [pytest.mark.usefixtures("alone"), pytest.mark.e2e]


def run(task, change=lambda engine: None):
    """The steps' metrics, and the engine afterwards."""
    engine = start_engine(task, pytest.fail)
    change(engine)
    steps = list(training_steps(engine, StoredLoader(TrainingRows.read(task.rows, task), task), task, finished=0))
    assert [step.number for step in steps] == list(range(1, task.training.steps + 1))
    return [step.metrics for step in steps], engine


def losses(task):
    return [metrics["loss"] for metrics in run(task)[0]]


@pytest.fixture(scope="module")
def plain(world):
    return run(make_task(world, workers=1, steps=4))[0]


def test_the_first_step_of_cpo(plain):
    first, last = plain[0], plain[-1]
    # One candidate of eight equals the gold and is masked: log 7!.
    assert first["loss"] == pytest.approx(math.lgamma(8), abs=1e-3)
    assert first["expected_loss"] == pytest.approx(math.lgamma(8))
    assert first["masked"] == 8
    assert first["gold_drift"] == pytest.approx(0, abs=1e-3)
    assert first["kl"] == pytest.approx(0, abs=1e-3)
    assert set(first["negative_drift"]) == {"autoregressive", "batch", "meanfield", "truncation"}
    assert last["loss"] < first["loss"]
    assert last["rank_accuracy"] > 0.5
    assert last["memory_gib"] > 0.05
    assert "mfu" not in last  # a CPU's peak is not known


def test_groups_of_different_k_with_ties_start_at_the_expected_loss(world, tmp_path):
    """Every other group has three candidates, the last two of which tie: log 3 for it, log 7! for the others."""

    def change(rows):
        return [first_three(row) if n % 2 else row for n, row in enumerate(rows)]

    write_groups(world / "tied", tmp_path / "groups", change=change)
    for objective, short in ((ObjectiveConfig(), math.log(3)), (ObjectiveConfig(ranked=False), math.log(3))):
        task = make_task(
            world, groups=tmp_path / "groups", workers=1, steps=4, prompts_per_step=32, objective=objective
        )
        metrics, _ = run(task)
        long = math.lgamma(8) if objective.ranked else math.log(7)
        assert metrics[0]["loss"] == pytest.approx((long + short) / 2, abs=1e-3)
        assert metrics[0]["expected_loss"] == pytest.approx((long + short) / 2)
        assert metrics[0]["masked"] == 16  # without the copies that fill the short groups
        assert metrics[-1]["loss"] < metrics[0]["loss"]


def test_in_bf16_the_first_loss_passes_the_check_and_then_falls(world, tmp_path):
    """The reference scored in bf16 too, but its rows were packed in other batches."""
    write_groups(world / "tied", tmp_path / "groups", precision="bf16")
    first, *_, last = run(make_task(world, groups=tmp_path / "groups", workers=1, steps=4, precision="bf16"))[0]
    assert first["loss"] == pytest.approx(math.lgamma(8), abs=0.2)
    assert last["loss"] < first["loss"]


@pytest.mark.parametrize(
    "settings",
    [
        {"prompts_per_microbatch": 8},
        {"activation_checkpointing": True},
        {"row_tokens": 96},
    ],
)
def test_options_that_only_save_memory_do_not_change_the_loss(world, plain, settings):
    calls = []
    task = make_task(world, workers=1, steps=4, **settings)
    metrics, _ = run(
        task,
        lambda engine: (
            engine.module.model.get_decoder().layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
        ),
    )
    assert [each["loss"] for each in metrics] == pytest.approx([each["loss"] for each in plain], abs=1e-4)
    microbatches = 4 * 8 // task.training.prompts_per_microbatch
    assert len(calls) == microbatches * (2 if task.training.activation_checkpointing else 1)


def test_every_objective_starts_at_the_expected_loss(world, plain):
    for objective in (
        ObjectiveConfig(length_normalised=True),
        ObjectiveConfig(gold_floor_weight=1.0),
        ObjectiveConfig(mle_weight=1.0),
        ObjectiveConfig(ranked=False),
        ObjectiveConfig(loss="infonca", ranked=False),
        ObjectiveConfig(loss="nca"),
        ObjectiveConfig(label_smoothing=0.1),
    ):
        metrics, _ = run(make_task(world, workers=1, steps=4, objective=objective))
        start = math.lgamma(8) if objective.ranked else math.log(7)
        start = 2 * math.log(2) if objective.loss == "nca" else start
        assert metrics[0]["loss"] == pytest.approx(start, abs=1e-3)
        assert metrics[-1]["loss"] != pytest.approx(plain[-1]["loss"], abs=1e-6)


def test_the_joint_loss_and_the_gold_floor_raise_the_gold_s_log_prob(world, plain):
    for objective in (ObjectiveConfig(mle_weight=20.0), ObjectiveConfig(gold_floor_weight=20.0)):
        metrics, _ = run(make_task(world, workers=1, steps=4, objective=objective))
        assert metrics[-1]["gold_logp"] > plain[-1]["gold_logp"]
        assert metrics[-1]["joint_loss"] > metrics[-1]["loss"]


def test_mle_and_pss_learn_the_gold(world):
    mle = make_task(world, workers=1, steps=6, objective=False)
    pss = dataclasses.replace(mle, scheduled_sampling=ScheduledSamplingConfig())
    for task in (mle, pss):
        metrics, engine = run(task)
        assert metrics[-1]["loss"] < metrics[0]["loss"]
        assert validate(engine, TrainingRows.read(task.rows, task), task)["loss"] < metrics[0]["loss"]
    assert losses(pss) == losses(pss)  # its draws are seeded
    assert losses(pss) != losses(mle)


def test_pss_does_not_depend_on_the_microbatch(world):
    task = dataclasses.replace(
        make_task(world, workers=1, steps=2, objective=False), scheduled_sampling=ScheduledSamplingConfig()
    )
    bigger = dataclasses.replace(task, training=task.training.model_copy(update={"prompts_per_microbatch": 8}))
    assert losses(task) == pytest.approx(losses(bigger), abs=1e-5)


def test_validation_is_the_mean_over_its_rows(world):
    task = make_task(world, workers=1, steps=1, prompts_per_step=32, prompts_per_microbatch=8, learning_rate=1e-9)
    metrics, engine = run(task)  # one step over all 32 rows
    measured = validate(engine, TrainingRows.read(task.rows, task), task)
    for name in ("loss", "gold_logp", "margin"):
        assert measured[name] == pytest.approx(metrics[0][name], abs=1e-3)
    # 5 rows and microbatches of 8: the last one is not full.
    assert math.isfinite(validate(engine, TrainingRows.read(task.rows, task, 5), task)["loss"])


def test_the_golds_likelihood_per_token_is_the_mle_loss(world):
    task = make_task(world, workers=1, steps=1, objective=False)
    rows = TrainingRows.read(task.rows, task)
    measured = validate(run(task)[1], rows, task)
    assert -measured["gold_logp"] / rows.mean_gold_tokens == pytest.approx(measured["loss"], rel=1e-5)


def test_a_gradient_that_is_not_finite_stops_before_the_step(world):
    task = make_task(world, workers=1, steps=1)
    before = {}

    def break_gradients(engine):
        before.update({name: p.detach().clone() for name, p in engine.module.named_parameters()})
        weight = engine.module.model.get_decoder().norm.weight
        weight.register_hook(lambda gradient: gradient * float("inf"))
        weight.register_hook(engine.module._count_nonfinite)
        engines.append(engine)

    engines = []
    with pytest.raises(Refusal, match=r"step 1: a gradient is not finite.*row-\d+.*learning rate"):
        run(task, break_gradients)
    assert all(torch.equal(before[name], p) for name, p in engines[0].module.named_parameters())


def test_groups_scored_by_another_reference_are_refused_at_the_first_step(world):
    task = make_task(world, head="untied", groups=world / "groups-tied", workers=1)
    with pytest.raises(Refusal, match=r"first CPO loss is .* but must be 8\.52"):
        run(task)


def test_a_requested_checkpoint_reaches_every_worker(world):
    task = make_task(world, workers=1, steps=3)
    engine = start_engine(task, pytest.fail)
    requested = iter([False, True, False])
    loader = StoredLoader(TrainingRows.read(task.rows, task), task)
    steps = training_steps(engine, loader, task, 0, lambda: Signals(save=next(requested)))
    assert [step.signals.save for step in steps] == [False, True, False]


@pytest.fixture(scope="module")
def gpt2(world, tmp_path_factory):
    """A GPT-2, whose three dropout rates are 0.1, and groups that it scored."""
    root = tmp_path_factory.mktemp("gpt2")
    shape = ModelConfig(architecture="gpt2", hidden_size=32, heads=1, layers=2, intermediate_size=64, context=64)
    initialize_model(shape, world / "tokenizer", 3, root / "gpt2")
    write_groups(root / "gpt2", root / "groups-gpt2")
    return root


def test_with_the_model_s_dropout_the_first_loss_is_checked_without_it(gpt2):
    task = make_task(gpt2, head="gpt2", workers=1, steps=3, dropout="model", prompts_per_step=32)
    metrics, engine = run(task)
    assert metrics[0]["loss"] != pytest.approx(math.lgamma(8), abs=1e-2)  # a step of training has dropout
    assert losses(task) == [each["loss"] for each in metrics]  # its draws are seeded
    rows = TrainingRows.read(task.rows, task)
    assert validate(engine, rows, task) == validate(engine, rows, task)  # validation has none
    assert losses(make_task(gpt2, head="gpt2", workers=1, steps=3))[0] == pytest.approx(math.lgamma(8), abs=1e-3)


def test_with_dropout_groups_of_another_reference_are_refused_too(gpt2, world):
    task = make_task(gpt2, head="gpt2", groups=world / "groups-tied", workers=1, dropout="model")
    with pytest.raises(Refusal, match=r"first CPO loss is .* but must be 8\.52"):
        run(task)
