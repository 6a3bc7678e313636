import json

import pytest

from cpo_ray.artifacts import read_jsonl, write_rows
from cpo_ray.config import RunConfig
from cpo_ray.data.tokenization import train_tokenizer
from cpo_ray.errors import ArtifactError
from cpo_ray.run import open_run
from cpo_ray.stages import perform

TRUTHS = ["one two three four five", "red green blue black white"]
ANSWERS = {"mle": ["one two three four", ""], "cpo": ["one one one one one one", "red green blue"]}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TRUTHS * 50, 300)


def configure(*models):
    return RunConfig.model_validate({"name": "x", "generation": {"models": list(models)}})


def write_data(tokenizer):
    def build(out):
        tokenizer.save_pretrained(out / "tokenizer")
        return {}

    return build


def write_answers(texts, decodings=("greedy",)):
    def build(out):
        rows = [
            {"id": str(n), "prompt": "p", "reference": truth, "response": text, "tokens": 1, "finish_reason": "stop"}
            for n, (truth, text) in enumerate(zip(TRUTHS, texts, strict=True))
        ]
        for decoding in decodings:
            write_rows(out / f"{decoding}.jsonl", rows)
        return {}

    return build


def measure(root, tokenizer, models, answers=ANSWERS, decodings=("greedy",)):
    """Perform the stage on these answers; made again if the texts are others."""
    with open_run(configure(*models), root, accept_changes=True) as run:
        run.make("data", {}, write_data(tokenizer))
        for name in models:
            run.make(f"generations/{name}", {"texts": answers[name]}, write_answers(answers[name], decodings))
        perform("text_metrics", run)


def read_scores(root, model):
    return json.loads((root / "text_metrics" / model / "scores.json").read_text())


def test_every_model_is_measured_beside_the_truth_and_against_mle(tmp_path, tokenizer):
    measure(tmp_path, tokenizer, ["mle", "cpo"], decodings=("greedy", "hot"))
    scores = {model: read_scores(tmp_path, model) for model in ANSWERS}
    assert list(scores["cpo"]) == ["greedy", "hot"]
    assert scores["mle"]["greedy"]["baseline"] is None
    assert scores["cpo"]["greedy"]["baseline"] == "mle"
    assert scores["mle"]["greedy"]["empty"] == 1
    rows = read_jsonl(tmp_path / "text_metrics" / "cpo" / "greedy.jsonl")
    assert [row["id"] for row in rows] == ["0", "1"]
    tokens = [len(tokenizer(text).input_ids) for text in ANSWERS["cpo"]]
    assert [row["tokens"] for row in rows] == tokens
    assert scores["cpo"]["greedy"]["metrics"]["tokens"]["answers"]["value"] == sum(tokens) / 2


def test_other_answers_of_the_baseline_are_measured_against_again(tmp_path, tokenizer, capsys):
    measure(tmp_path, tokenizer, ["mle", "cpo"])
    capsys.readouterr()
    measure(tmp_path, tokenizer, ["mle", "cpo"])
    output = capsys.readouterr().out
    assert "reused text_metrics/mle" in output
    assert "reused text_metrics/cpo" in output
    before = read_scores(tmp_path, "cpo")
    measure(tmp_path, tokenizer, ["mle", "cpo"], ANSWERS | {"mle": ["one", "red"]})
    after = read_scores(tmp_path, "cpo")
    assert after["greedy"]["metrics"]["tokens"]["answers"] == before["greedy"]["metrics"]["tokens"]["answers"]
    assert after["greedy"]["metrics"]["tokens"]["to_baseline"] != before["greedy"]["metrics"]["tokens"]["to_baseline"]


def test_a_run_that_does_not_evaluate_mle_has_no_differences(tmp_path, tokenizer):
    measure(tmp_path, tokenizer, ["cpo"])
    scores = read_scores(tmp_path, "cpo")["greedy"]
    assert scores["baseline"] is None
    assert {score["to_baseline"] for score in scores["metrics"].values()} == {None}


def test_a_special_token_that_a_text_spells_out_is_text(tmp_path, tokenizer):
    measure(tmp_path, tokenizer, ["cpo"], {"cpo": ["<|endoftext|>", "red"]})
    assert read_jsonl(tmp_path / "text_metrics" / "cpo" / "greedy.jsonl")[0]["tokens"] > 1


def test_a_folder_without_answers_is_named(tmp_path, tokenizer):
    with pytest.raises(ArtifactError, match=r"generations/cpo holds no answers\."):
        measure(tmp_path, tokenizer, ["cpo"], decodings=())


def test_a_baseline_without_a_decoding_is_named(tmp_path, tokenizer):
    with open_run(configure("mle", "cpo"), tmp_path, accept_changes=True) as run:
        run.make("data", {}, write_data(tokenizer))
        run.make("generations/mle", {}, write_answers(ANSWERS["mle"]))
        run.make("generations/cpo", {}, write_answers(ANSWERS["cpo"], ("greedy", "hot")))
        with pytest.raises(ArtifactError, match=r"generations/mle has no hot"):
            perform("text_metrics", run)
