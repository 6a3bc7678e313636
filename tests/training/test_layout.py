"""The layout that a task's own rows settle, before training."""

import math

import pyarrow as pa
import pytest
import torch

from cpo_ray.artifacts import write_table
from cpo_ray.config import ObjectiveConfig
from cpo_ray.objective.architectures import Layout, layout_of
from cpo_ray.objective.pretrained import load_model, train_mode
from cpo_ray.training import layout
from cpo_ray.training.deepspeed_engine import start_engine
from cpo_ray.training.layout import describe_row, extreme_groups, settle_on_workers
from cpo_ray.training.loader import StoredLoader
from cpo_ray.training.loop import training_steps
from cpo_ray.training.rows import TrainingRows
from cpo_ray.training.task import Refusal
from tests.objective.tiny_models import tiny_architecture
from tests.training.world import make_task, write_groups


def test_the_longest_and_the_shortest_row_are_found(tmp_path):
    rows = {"prompt_ids": [[1] * 4, [1], [1] * 9], "response_ids": [[2] * 3, [3], [4, 5]]}
    write_table(tmp_path / "examples" / "part-0.parquet", pa.table(rows))
    assert extreme_groups(tmp_path / "examples") == ([[1] * 9, [1]], [[[4, 5]] * 4, [[3]] * 4])
    groups = {"prompt_ids": [[1] * 4, [1]], "candidate_ids": [[[2], [3] * 3], [[4], [5] * 8]]}
    write_table(tmp_path / "groups" / "part-0.parquet", pa.table(groups))
    assert extreme_groups(tmp_path / "groups") == (
        [[1], [1] * 4], [[[4], [5] * 8, [4], [4]], [[2], [3] * 3, [2], [2]]],
    )  # fmt: skip


@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_is_drawn_at_random(tmp_path, checkpointing):
    """OPT drops units by a number of its layers, PhiMoE's router draws experts in training mode."""
    for name in ("opt", "phimoe"):
        tiny_architecture(name).save_pretrained(tmp_path / name)
        model = load_model(tmp_path / name, "fp32")
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        ids = torch.randint(1, 97, (2, 20))
        expected = model.eval()(ids).logits
        train_mode(model)
        assert torch.equal(model(ids).logits, expected)
        assert any(module.training for module in model.modules()) == checkpointing


@pytest.fixture
def two_workers(monkeypatch):
    """As if another worker had found what is set here: (level, reason, fault)."""
    other = [(0, None, None)]

    def gather(findings, mine):
        findings[:] = [mine, other[0]]

    monkeypatch.setattr(layout.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(layout.dist, "all_gather_object", gather)
    return other


def test_all_workers_take_the_slowest_layout_that_one_needs(two_workers, world):
    task = make_task(world)
    for found, level, notices in (
        ((0, None, None), None, []),
        ((1, "its log-probs differ", None), "its log-probs differ", ["its log-probs differ"]),
    ):
        model, lines, two_workers[0] = load_model(world / "tied", "fp32"), [], found
        settle_on_workers(model, task, lines.append)
        assert layout_of(model).separate == level
        assert [line.split(": ")[-1] for line in lines] == notices


def test_what_one_worker_cannot_compute_all_refuse(two_workers, world):
    two_workers[0] = (3, "a", "nothing is right")
    with pytest.raises(Refusal, match="nothing is right"):
        settle_on_workers(load_model(world / "tied", "fp32"), make_task(world), pytest.fail)


@pytest.mark.e2e
@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("name", "stage", "checkpointing"), [("lfm2", 1, False), ("lfm2", 3, True), ("gemma2", 3, False)]
)
def test_any_architecture_starts_at_log_k_and_trains(name, stage, checkpointing, world, tmp_path):
    model = tmp_path / name
    tiny_architecture(name).save_pretrained(model)
    write_groups(model, tmp_path / "groups")
    settings = {"zero_stage": stage, "activation_checkpointing": checkpointing, "steps": 3, "workers": 1}
    task = make_task(tmp_path, head=name, groups=tmp_path / "groups", objective=ObjectiveConfig(), **settings)
    lines = []
    engine = start_engine(task, lines.append)
    assert len(lines) == (name == "lfm2")
    assert layout_of(engine.module.model).separate is None or "Lfm2ShortConv" in lines[0] or "Conv1d" in lines[0]
    steps = list(training_steps(engine, StoredLoader(TrainingRows.read(task.rows, task), task), task, finished=0))
    assert steps[0].metrics["loss"] == pytest.approx(math.lgamma(8), abs=2e-3)
    assert all(0 < step.metrics["grad_norm"] < 1e3 for step in steps)


@pytest.mark.e2e
@pytest.mark.usefixtures("alone")
def test_a_loss_that_is_not_finite_names_row_candidate_and_layer(world):
    task = make_task(world, workers=1, steps=1)
    engine = start_engine(task, pytest.fail)
    rows = TrainingRows.read(task.rows, task)
    assert describe_row(engine, rows, 3) == "row-3"
    with torch.no_grad():
        engine.module.model.model.layers[1].mlp.down_proj.weight.fill_(torch.nan)
    with pytest.raises(
        Refusal, match=r"row-\d+ \(candidate 0, gold; first not finite: Linear \(model.layers.1.mlp.down_proj\)\)"
    ):
        list(training_steps(engine, StoredLoader(rows, task), task, finished=0))


@pytest.mark.e2e
@pytest.mark.usefixtures("alone")
def test_a_stream_has_no_rows_yet_and_is_checked_on_examples(world):
    task = make_task(world, workers=1)
    model = load_model(world / "tied", "fp32")
    settle_on_workers(model, task.__class__(**{**vars(task), "rows": None}), pytest.fail)
    assert layout_of(model) == Layout()
