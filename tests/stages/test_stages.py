import contextlib
from typing import Any

import pytest

from cpo_ray import stages
from cpo_ray.artifacts import read_jsonl, write_rows
from cpo_ray.cluster.session import LazyRay
from cpo_ray.config import RunConfig
from cpo_ray.data import examples
from cpo_ray.errors import ArtifactError, Preempted
from cpo_ray.evaluation import reward_pool
from cpo_ray.run import open_run
from cpo_ray.training import trainer


def test_without_a_reward_model_its_stage_is_skipped(tmp_path, capsys):
    with open_run(RunConfig(name="x"), tmp_path, accept_changes=False) as run:
        stages.reward(run)
    assert "skipped: reward.model names no reward model" in capsys.readouterr().out
    assert not (tmp_path / "reward").exists()


def test_the_reward_stage_scores_every_answer_of_every_model_once(tmp_path, monkeypatch):
    asked: list[Any] = []

    def score(generations, config, cluster, out, on_rows):
        asked.append((generations, config.model))
        return {"mle greedy": 0.5}

    monkeypatch.setattr(reward_pool, "score_generations", score)
    monkeypatch.setattr(LazyRay, "ensure", lambda _: None)
    row = {"id": "1", "prompt": "p", "response": "a", "reference": "b", "tokens": 1, "finish_reason": "stop"}

    def answer(out):
        for decoding in ("greedy", "top_p"):
            write_rows(out / f"{decoding}.jsonl", [row])
        return {}

    model = tmp_path / "reward-model"
    model.mkdir()
    config = RunConfig.model_validate(
        {"name": "x", "generation": {"models": ["mle", "cpo"]}, "reward": {"model": str(model)}}
    )
    with open_run(config, tmp_path / "run", accept_changes=False) as run:
        for name in ("mle", "cpo"):
            run.make(f"generations/{name}", {}, answer)
        stages.reward(run)
        stages.reward(run)
        rows = read_jsonl(tmp_path / "run" / "generations" / "mle" / "greedy.jsonl")
        each = {"greedy": rows, "top_p": rows}
        assert asked == [({"mle": each, "cpo": each}, str(model))]
        (model / "model.safetensors").write_text("other weights")
        stages.reward(run)
        assert len(asked) == 2


def test_data_are_made_again_where_the_tokenizer_in_a_directory_changed(tmp_path, monkeypatch):
    made: list[Any] = []
    monkeypatch.setattr(examples, "prepare_examples", lambda config, out: made.append(out) or {})
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    config = RunConfig.model_validate({"name": "x", "data": {"tokenizer": {"path": str(tokenizer)}}})
    with open_run(config, tmp_path / "run", accept_changes=False) as run:
        for vocabulary, times in (("a", 1), ("a", 1), ("a b", 2)):
            (tokenizer / "tokenizer.json").write_text(vocabulary)
            stages.data(run)
            assert len(made) == times


@pytest.mark.parametrize("stage", [stages.judging, stages.reward, stages.mauve])
def test_a_stage_that_finds_no_answers_says_so(stage, tmp_path, monkeypatch):
    monkeypatch.setattr(LazyRay, "ensure", lambda _: None)
    monkeypatch.setattr("cpo_ray.evaluation.features.load_featurizer", lambda _: None)
    tree = {"name": "x", "generation": {"models": ["mle"]}, "reward": {"model": "some/model"}}
    tree["judge"] = {"url": "http://127.0.0.1:9/v1", "model": "some-judge"}
    monkeypatch.setenv("CPO_RAY_JUDGE_KEY", "some-key")
    with open_run(RunConfig.model_validate(tree), tmp_path, accept_changes=False) as run:
        for name in ("data", "generations/mle"):
            run.make(name, {}, lambda out: {})
        with pytest.raises(ArtifactError, match=r"generations/mle holds no answers\."):
            stage(run)


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
            stages.cpo(run)
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
            stages.cpo(run)
        stages.cpo(run)
    assert len(trained) == 1


@contextlib.contextmanager
def ready_for_cpo(root, monkeypatch, beta=5.0):
    """A run whose stages before `cpo` are done."""
    monkeypatch.setattr(LazyRay, "ensure", lambda *_: None)
    config = RunConfig.model_validate({"name": "x", "objective": {"beta": beta}, "tracking": {"tensorboard": False}})
    with open_run(config, root, accept_changes=True) as run:
        for needed in ("models/reference", "groups/train"):
            run.make(needed, {}, lambda _: {})
        yield run
