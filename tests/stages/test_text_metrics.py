import json

import numpy as np
import pyarrow as pa
import pytest

from cpo_ray.artifacts import read_jsonl, write_rows, write_table
from cpo_ray.cluster.session import LazyRay
from cpo_ray.config import RunConfig
from cpo_ray.data.tokenization import train_tokenizer
from cpo_ray.errors import ArtifactError, ConfigError
from cpo_ray.evaluation import features, likelihood_pool
from cpo_ray.records import EXAMPLE_SCHEMA
from cpo_ray.run_directory import open_run
from cpo_ray.stages import STAGES, perform

TRUTHS = ["one two three four five", "red green blue black white"]
ANSWERS = {"mle": ["one two three four", ""], "cpo": ["one one one one one one", "red green blue"]}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TRUTHS * 50, 300)


PLAIN = {"embedder": None, "reference_likelihood": False}


def configure(*models, **text_metrics):
    text_metrics = PLAIN | text_metrics
    return RunConfig.model_validate({"name": "x", "generation": {"models": list(models)}, "text_metrics": text_metrics})


def write_data(tokenizer):
    def build(out):
        tokenizer.save_pretrained(out / "tokenizer")
        rows = [
            {
                "id": str(n),
                "source": "test",
                "category": "",
                "prompt": f"prompt {n}",
                "response": truth,
                "prompt_ids": [1, 2 + n],
                "response_ids": [*tokenizer(truth).input_ids, tokenizer.eos_token_id],
            }
            for n, truth in enumerate(TRUTHS)
        ]
        write_table(out / "test" / "part-00000.parquet", pa.Table.from_pylist(rows, EXAMPLE_SCHEMA))
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


def measure(root, tokenizer, models, answers=ANSWERS, decodings=("greedy",), **text_metrics):
    """Perform the stage on these answers; made again if the texts are others."""
    with open_run(configure(*models, **text_metrics), root, accept_changes=True) as run:
        run.make("data", {}, write_data(tokenizer))
        run.make("models/reference", {}, lambda _: {})
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


def test_answers_to_other_prompts_are_refused_before_anything_is_scored(tmp_path, tokenizer):
    with open_run(configure("mle", "cpo", reference_likelihood=True), tmp_path, accept_changes=True) as run:
        run.make("data", {}, write_data(tokenizer))
        run.make("models/reference", {}, lambda _: {})
        run.make("generations/mle", {}, write_answers(ANSWERS["mle"]))
        run.make("generations/cpo", {}, write_answers(ANSWERS["cpo"]))
        path = tmp_path / "generations" / "cpo" / "greedy.jsonl"
        path.write_text(path.read_text().replace('"id":"1"', '"id":"2"'))
        with pytest.raises(ArtifactError, match=r"generations/(mle|cpo)/greedy\.jsonl has other prompts"):
            perform("text_metrics", run)


def test_answers_are_scored_under_the_reference_and_a_held_out_model_in_one_pass_each(tmp_path, tokenizer, monkeypatch):
    asked = []

    def score(rows, source, precision, cluster, on_rows):
        asked.append((source, rows))
        on_rows(len(rows))
        return [[-(float(len(tokens)) ** 2) for tokens in row.continuations] for row in rows]

    monkeypatch.setattr(likelihood_pool, "score_continuations", score)
    monkeypatch.setattr(LazyRay, "ensure", lambda _: None)
    heldout = tmp_path / "other"
    tokenizer.save_pretrained(heldout)
    (heldout / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 16}))
    monkeypatch.chdir(tmp_path)
    measure(tmp_path / "run", tokenizer, ["mle", "cpo"], reference_likelihood=True, heldout="other")
    assert [source for source, _ in asked] == [str(tmp_path / "run" / "models" / "reference"), str(heldout)]
    eos, encode = tokenizer.eos_token_id, lambda text: tokenizer(text).input_ids
    reference, other = (rows for _, rows in asked)
    assert [row.prompt for row in reference] == [[1, 2], [1, 3]], "the prompts that the models were given"
    assert reference[1].continuations == [[*encode(text), eos] for text in (TRUTHS[1], "", ANSWERS["cpo"][1])]
    assert [row.prompt for row in other] == [encode(tokenizer.decode(ids)) for ids in ([1, 2], [1, 3])]
    assert other[1].continuations == reference[1].continuations, "it has the same tokenizer"
    assert all(len(row.prompt) + max(map(len, row.continuations)) <= 16 for row in other)
    metrics = read_scores(tmp_path / "run", "cpo")["greedy"]["metrics"]
    lengths = [len(encode(text)) + 1 for text in ANSWERS["cpo"]]
    for name in ("reference_logp", "heldout_logp"):
        assert metrics[name]["answers"]["value"] == -sum(lengths) / 2, "nats per token, EOS included"
        assert metrics[name]["truth"]["value"] is not None
    measure(tmp_path / "run", tokenizer, ["mle", "cpo"], reference_likelihood=True, heldout="other")
    assert len(asked) == 2, "nothing is scored again"


def test_mauve_and_text_metrics_embed_a_list_of_texts_once(tmp_path, tokenizer, monkeypatch):
    embedded = []

    def embed(_, texts):
        embedded.append(texts)
        return np.ones((len(texts), 3), dtype=np.float32)

    features.sentence_features.cache_clear()
    monkeypatch.setattr(features, "load_embedder", lambda name: name)
    monkeypatch.setattr(features, "embed_texts", embed)
    measure(tmp_path, tokenizer, ["mle", "cpo"], embedder="some-embedder")
    assert embedded == [TRUTHS, ANSWERS["mle"], ANSWERS["cpo"]]
    features.load_featurizer(RunConfig(name="x").mauve.model_copy(update={"embedder": "some-embedder"}))(TRUTHS)
    assert len(embedded) == 3
    features.sentence_features.cache_clear()
    metrics = read_scores(tmp_path, "mle")["greedy"]["metrics"]
    assert metrics["similarity"]["answers"]["value"] == 0.5, "1, and 0 for the empty answer"
    assert metrics["energy_distance"]["answers"]["value"] == 0


def test_a_held_out_model_that_does_not_exist_is_refused_before_the_run_begins(tmp_path):
    with pytest.raises(ConfigError, match=r"text_metrics\.heldout: there is no directory .*nowhere"):
        STAGES["text_metrics"].check(configure("cpo", heldout=str(tmp_path / "nowhere")))


def test_a_held_out_model_without_a_tokenizer_is_refused(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(LazyRay, "ensure", lambda _: None)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ConfigError, match=r"text_metrics\.heldout .*other has no tokenizer that can be used"):
        measure(tmp_path / "run", tokenizer, ["cpo"], heldout=str(tmp_path / "other"))
