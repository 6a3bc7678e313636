import json
import shutil

import pytest
import yaml
from huggingface_hub import ModelCard

from cpo_ray.artifacts import find_artifact, make_artifact
from cpo_ray.config import AdapterConfig
from cpo_ray.report.findings import find_results
from cpo_ray.report.model_card import place_cards, render_card
from cpo_ray.report.run_contents import read_run
from cpo_ray.report.training_charts import first_step_loss
from cpo_ray.report.write import write_report
from tests.report.fake_run import CONFIG, MODELS, make_fake_run


@pytest.fixture
def root(tmp_path):
    make_fake_run(tmp_path / "run", rows=30, steps=12, decodings=("greedy",))
    return tmp_path / "run"


def card_of(root, model):
    run = read_run(root)
    return render_card(run, model, find_results([run]))


def test_every_model_gets_a_card_and_random_weights_do_not(root):
    (root / "models" / "initial").mkdir()
    (root / "models" / "initial" / "manifest.json").write_text("{}")
    write_report([root], root / "report")
    assert {path.parent.name for path in (root / "report" / "cards").glob("*/README.md")} == set(MODELS)


def test_the_hub_can_read_a_card(root):
    card = ModelCard(card_of(root, "merged-0.30"))
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert "base_model" not in card.data.to_dict(), "it was made from scratch"
    row = next(row for row in find_results([read_run(root)]) if row["model"] == "merged-0.30")
    scores = {result.metric_type: result for result in card.data.eval_results}
    assert scores["win_rate"].metric_value == round(row["win_rate"], 4)
    assert scores["win_rate"].metric_name == "Win rate against the ground truth, greedy decoding, judge oracle"
    assert scores["mauve"].metric_value == round(row["mauve"], 4)


def test_a_card_describes_the_model_and_its_training(root):
    card = card_of(root, "merged-0.30")
    for words in (
        "0.3 times the continued-MLE model plus 0.7 times the CPO model (MixNR",
        "3 batch, 5 meanfield, 3 truncation (K = 12), ranked by similarity to the truth; beta 5.0",
        "- Train rows: 3,000",
        "12 responses",
        "- Responses without EOS, because their text goes on: 12",
        "Its judge was local",
        "synthetic task",
        "cpo-ray run config.yaml --run-dir runs/demo-again",
    ):
        assert words in card
    text = card.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(text) == CONFIG
    assert "parallel scheduled" not in card_of(root, "mle")
    assert "Negatives per prompt" not in card_of(root, "mle")


@pytest.mark.parametrize(
    ("objective", "description", "loss"),
    [
        (
            {"loss": "infonca", "scores": "similarity", "score_temperature": 0.5},
            "by InfoNCA (InfoNCA MixN)",
            "InfoNCA, rewards by similarity, temperature 0.5; beta 5.0",
        ),
        ({"loss": "simpo", "gamma": 1.0}, "by SimPO (SimPO MixN)", "SimPO, gamma 1.0; beta 5.0"),
        (
            {"ranked": False, "label_smoothing": 0.1},
            "by Contrastive Preference Optimization (MixN smoothed 0.1)",
            "not ranked, labels smoothed by 0.1; beta 5.0",
        ),
    ],
)
def test_a_card_names_another_loss(tmp_path, objective, description, loss):
    objective = {"beta": 5.0, "ranked": True} | objective
    make_fake_run(tmp_path, rows=20, steps=5, decodings=("greedy",), objective=objective)
    card = card_of(tmp_path, "cpo")
    assert description in card
    assert loss in card


@pytest.mark.parametrize(
    ("loss", "formula"),
    [("nca", "2 log 2"), ("infonca", "log 12"), ("cpo", "log 12!"), ("lipo", None), ("simpo", None)],
)
def test_the_first_loss_of_another_objective(tmp_path, loss, formula):
    make_fake_run(tmp_path, rows=20, steps=5, decodings=("greedy",), objective={"ranked": True, "loss": loss})
    found = first_step_loss(read_run(tmp_path))
    assert (found and found[0].removesuffix(" without the masked")) == formula


def test_known_data_and_base_have_their_hub_ids(tmp_path):
    model = {"path": "openai-community/gpt2-xl"}
    data = {"source": "dolly", "path": "/somewhere/databricks-dolly-15k.jsonl"}
    make_fake_run(tmp_path, rows=20, steps=5, decodings=("greedy",), judge="gpt-x", model=model, data=data)
    card = card_of(tmp_path, "cpo")
    data = ModelCard(card).data
    assert (data.base_model, data.datasets) == ("openai-community/gpt2-xl", ["databricks/databricks-dolly-15k"])
    assert "`databricks-dolly-15k.jsonl`" in card
    assert "a language model's biases" in card


def test_the_card_of_a_run_without_evaluation_states_it(tmp_path):
    make_fake_run(tmp_path, rows=5, steps=5, models={})
    (tmp_path / "models" / "cpo").mkdir(parents=True)
    (tmp_path / "config.json").unlink()
    card = card_of(tmp_path, "cpo")
    assert "This model was not evaluated." in card
    assert "holds no config" in card
    assert "model-index" not in card


def test_copying_a_card_into_a_model_keeps_its_fingerprint(root):
    def build(out):
        (out / "config.json").write_text("{}")
        return {}

    shutil.rmtree(root / "models" / "cpo")
    before = make_artifact(root, "models/cpo", {"seed": 1}, build)
    write_report([root], root / "report")
    placed = place_cards(root / "report" / "cards", root / "models")
    assert root / "models" / "cpo" / "README.md" in placed
    after = find_artifact(root, "models/cpo")
    assert after.fingerprint == before.fingerprint
    assert make_artifact(root, "models/cpo", {"seed": 1}, build).reused
    assert place_cards(root / "report" / "cards", root / "models") == [], "they are unchanged"


def test_cards_of_deleted_models_stay_in_the_report(root):
    write_report([root], root / "report")
    shutil.rmtree(root / "models" / "cpo")
    placed = place_cards(root / "report" / "cards", root / "models")
    assert len(placed) == len(MODELS) - 1
    assert json.loads((root / "report" / "report.json").read_text())["runs"][0]["label"] == "demo"


def test_a_card_of_an_adapter_says_how_it_was_trained_and_is_loaded(root):
    assert 'AutoModelForCausalLM.from_pretrained("PATH")' in card_of(root, "cpo")
    adapter = AdapterConfig(rank=8, quantize="nf4", export="adapter").model_dump(mode="json")
    model = {"path": "owner/base"}
    (root / "config.json").write_text(json.dumps(CONFIG | {"adapter": adapter, "model": model}))
    card = card_of(root, "cpo")
    assert "- Adapter (LoRA): rank 8, alpha 32, in every linear layer, the frozen layers in nf4\n" in card
    assert 'AutoPeftModelForCausalLM.from_pretrained("PATH/adapter")' in card
    assert 'AutoModelForCausalLM.from_pretrained("PATH")' in card_of(root, "reference")
