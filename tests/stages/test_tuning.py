"""Both methods try the same learning rates, and each keeps the best on the validation split."""

import json

import pytest

from cpo_ray.artifacts import read_jsonl
from cpo_ray.cluster.session import LazyRay
from cpo_ray.config import RunConfig
from cpo_ray.errors import Preempted
from cpo_ray.run_directory import open_run
from cpo_ray.stages import perform
from cpo_ray.stages.one_training import join_summaries
from cpo_ray.stages.tuning import choice
from cpo_ray.training import trainer

LOSSES = {"cpo": {1e-5: 3.0, 3e-5: 2.0, 1e-4: 2.5}, "mle": {1e-5: 1.5, 3e-5: 1.2, 1e-4: 1.1}}


def config(**sections):
    return RunConfig.model_validate(
        {
            "name": "x",
            "data": {"validation_rows": 8},
            "training": {"validation_rows": 8},
            "tracking": {"tensorboard": False},
        }
        | sections
    )


TUNED = {"tuning": {"learning_rates": [1e-5, 3e-5, 1e-4]}}


@pytest.fixture
def trained(monkeypatch):
    """Trainings without workers: the (stage, learning rate) of each, in order. The model is a file with the rate."""
    seen = []

    def train(task, cluster, checkpoints, out, on_metrics, on_notice, stop_requested):
        rate = task.training.learning_rate
        seen.append((task.stage, rate))
        on_metrics({"stage": task.stage, "step": 1, "loss": rate})
        (out / "model.safetensors").write_text(f"{task.stage} {rate:g}")
        return {"steps": task.training.steps} | (
            {"validation_loss": LOSSES[task.stage][rate]} if task.validation else {}
        )

    monkeypatch.setattr(LazyRay, "ensure", lambda *_: None)
    monkeypatch.setattr(trainer, "train_model", train)
    return seen


def perform_both(root, sections, **also):
    def write(out):
        (out / "selected").mkdir(exist_ok=True)
        (out / "selected" / "part-00000.parquet.txt").write_text("rows")
        return {}

    with open_run(config(**sections | also), root, accept_changes=True) as run:
        run.make("models/reference", {}, lambda _: {})
        for name in ("groups/train", "groups/validation"):
            run.make(name, {}, write)
        for stage in ("cpo", "mle"):
            perform(stage, run)


def summary(root, name):
    return json.loads((root / name / "manifest.json").read_text())["summary"]


def curves(root):
    return {row["stage"]: row["loss"] for row in read_jsonl(root / "metrics.jsonl")}


def test_each_method_keeps_the_best_of_the_same_rates(trained, tmp_path, capsys):
    perform_both(tmp_path, TUNED)
    assert trained == [(stage, rate) for stage in ("cpo", "mle") for rate in (1e-5, 3e-5, 1e-4)]
    for stage, best in (("cpo", 3e-5), ("mle", 1e-4)):
        kept = summary(tmp_path, f"models/{stage}")
        assert kept["learning_rate"] == best
        assert kept["validation_loss"] == LOSSES[stage][best]
        assert kept["trials"] == [
            {"learning_rate": rate, "validation_loss": loss} for rate, loss in LOSSES[stage].items()
        ]
        assert (tmp_path / "models" / stage / "model.safetensors").read_text() == f"{stage} {best:g}"
        assert sorted(path.name for path in (tmp_path / "trials" / stage).iterdir()) == ["0.0001", "1e-05", "3e-05"]
    assert curves(tmp_path) == {"cpo": 3e-5, "mle": 1e-4}
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["cpo", "mle", "reference"]
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        "learning rates tried, with validation losses: 1e-05 (3.0000), 3e-05 (2.0000), 0.0001 (2.5000); kept: 3e-05"
        in (printed)
    )
    assert (
        "warning the best learning rate, 0.0001, is the highest of tuning.learning_rates: a higher one may be"
        in printed
    )


def test_a_second_run_trains_nothing_and_another_rate_costs_one_trial(trained, tmp_path):
    perform_both(tmp_path, TUNED)
    trained.clear()
    perform_both(tmp_path, TUNED)
    assert trained == []
    assert curves(tmp_path) == {"cpo": 3e-5, "mle": 1e-4}
    perform_both(tmp_path, {"tuning": {"learning_rates": [1e-5, 3e-5]}})
    assert trained == []
    assert curves(tmp_path) == {"cpo": 3e-5, "mle": 3e-5}
    assert (tmp_path / "models" / "mle" / "model.safetensors").read_text() == "mle 3e-05"


def test_a_stopped_trial_is_kept_and_the_next_one_follows(trained, tmp_path, monkeypatch):
    train = trainer.train_model

    def stop(*arguments):
        arguments[-1].set()
        return train(*arguments)

    monkeypatch.setattr(trainer, "train_model", stop)
    with pytest.raises(Preempted, match="the training cpo-1e-05 of stage `cpo` is finished; the same command goes on"):
        perform_both(tmp_path, TUNED)
    monkeypatch.setattr(trainer, "train_model", train)
    perform_both(tmp_path, TUNED)
    assert [rate for stage, rate in trained if stage == "cpo"] == [1e-5, 3e-5, 1e-4]


def test_mle_has_its_own_learning_rate(trained, tmp_path):
    plain = {"training": {"learning_rate": 1e-5}, "data": {}}
    perform_both(tmp_path, plain)
    assert trained == [("cpo", 1e-5), ("mle", 1e-5)]
    perform_both(tmp_path, plain, mle={"learning_rate": 3e-5})
    assert trained[2:] == [("mle", 3e-5)]
    perform_both(tmp_path, {"training": {"learning_rate": 1e-4}, "data": {}}, mle={"learning_rate": 3e-5})
    assert trained[3:] == [("cpo", 1e-4)]


def test_a_best_rate_within_the_list_is_no_reason_to_warn():
    assert "warnings" not in choice({1e-5: 2.0, 3e-5: 1.0, 1e-4: 2.0})
    assert "is the lowest of tuning.learning_rates: a lower one" in choice({3e-5: 1.0, 1e-4: 2.0})["warnings"][0]
    assert choice({1e-5: 1.0, 3e-5: 1.0, 1e-4: 1.0})["learning_rate"] == 1e-5  # of equal ones the first


def test_a_chosen_model_keeps_the_warnings_of_its_training():
    trained, chosen = {"steps": 4, "warnings": ["rounded"]}, {"learning_rate": 1e-5, "warnings": ["too short"]}
    joined = {"steps": 4, "learning_rate": 1e-5, "warnings": ["rounded", "too short"]}
    assert join_summaries(trained, chosen) == joined
    assert join_summaries({"steps": 4}, {"kept": 1}) == {"steps": 4, "kept": 1}
