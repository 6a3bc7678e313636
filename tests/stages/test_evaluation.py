from typing import Any

import pytest

from cpo_ray.artifacts import read_jsonl, write_rows
from cpo_ray.cluster.session import LazyRay
from cpo_ray.config import RunConfig
from cpo_ray.errors import ArtifactError
from cpo_ray.evaluation import reward_pool
from cpo_ray.run_directory import open_run
from cpo_ray.stages import perform


def test_without_a_reward_model_its_stage_is_skipped(tmp_path, capsys):
    with open_run(RunConfig(name="x"), tmp_path, accept_changes=False) as run:
        perform("reward", run)
    assert "skipped: reward.model names no reward model" in capsys.readouterr().out
    assert not (tmp_path / "reward").exists()


def test_the_reward_stage_scores_every_answer_of_every_model_once(tmp_path, monkeypatch):
    asked: list[Any] = []

    def score(generations, config, cluster, out, on_rows):
        asked.append((generations, config.model))
        return {"mle greedy": 0.5}

    monkeypatch.setattr(reward_pool, "score_generations", score)
    monkeypatch.setattr(LazyRay, "ensure", lambda _, bundles=(): None)
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
        perform("reward", run)
        perform("reward", run)
        rows = read_jsonl(tmp_path / "run" / "generations" / "mle" / "greedy.jsonl")
        each = {"greedy": rows, "top_p": rows}
        assert asked == [({"mle": each, "cpo": each}, str(model))]
        (model / "model.safetensors").write_text("other weights")
        perform("reward", run)
        assert len(asked) == 2


@pytest.mark.parametrize("stage", ["judging", "reward", "mauve"])
def test_a_stage_that_finds_no_answers_says_so(stage, tmp_path, monkeypatch):
    monkeypatch.setattr(LazyRay, "ensure", lambda _, bundles=(): None)
    monkeypatch.setattr("cpo_ray.evaluation.features.load_featurizer", lambda _: None)
    tree = {"name": "x", "generation": {"models": ["mle"]}, "reward": {"model": "some/model"}}
    tree["judge"] = {"url": "http://127.0.0.1:9/v1", "model": "some-judge"}
    monkeypatch.setenv("CPO_RAY_JUDGE_KEY", "some-key")
    with open_run(RunConfig.model_validate(tree), tmp_path, accept_changes=False) as run:
        for name in ("data", "generations/mle"):
            run.make(name, {}, lambda out: {})
        with pytest.raises(ArtifactError, match=r"generations/mle holds no answers\."):
            perform(stage, run)
