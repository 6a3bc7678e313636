import pytest

from cpo_ray.config import RunConfig
from cpo_ray.config.loading import load_config
from cpo_ray.config.shipped import shipped_configs
from cpo_ray.report.method import describe_negatives, name_base, name_method, name_source


def config(ranked=True, weight=0.0, **negatives):
    return {"sampling": {"negatives": negatives}, "objective": {"ranked": ranked, "mle_weight": weight}}


@pytest.mark.parametrize(
    ("tree", "name"),
    [
        (config(autoregressive=11, batch=0), "ANR"),
        (config(ranked=False, batch=4), "BN"),
        (config(meanfield=4), "MNR"),
        (config(ranked=False, truncation=4), "TN"),
        (config(batch=3, meanfield=5, truncation=3), "MixNR"),
        (config(ranked=False, autoregressive=0, batch=3, meanfield=5, truncation=3), "MixN"),
        (config(ranked=False, batch=3, meanfield=5), "3BN+5MN"),
        (config(autoregressive=3, batch=1, meanfield=2, truncation=1), "3AN+1BN+2MN+1TNR"),
        (config(shuffled=2, truncation=3, batch=3, meanfield=5), "3BN+5MN+3TN+2shuffledR"),
        (config(weight=1.0, batch=1, unhelpful=1), "1BN+1UNR + 1 MLE"),
        (config(unhelpful=1), "DPO"),
        (config(ranked=False, unhelpful=4), "UN"),
        (config(shuffled=4), "shuffledR"),
        (config(ranked=False, greedy=1), "greedy"),
        (config(autoregressive=2, greedy=1, batch=1, hot=1), "2AN+1BN+1greedy+1hotR"),
        (config(weight=0.5, batch=4), "BNR + 0.5 MLE"),
        ({}, "CPO"),
    ],
)
def test_methods_have_the_paper_s_names(tree, name):
    assert name_method(tree, "cpo") == name
    assert name_method(tree, "merged-0.30") == name


@pytest.mark.parametrize(
    ("objective", "name"),
    [
        ({"loss": "infonca", "ranked": True}, "InfoNCA MixN"),
        ({"loss": "nca", "ranked": False, "mle_weight": 1.0}, "NCA MixN + 1 MLE"),
        ({"loss": "lipo"}, "LiPO MixN"),
        ({"loss": "simpo", "label_smoothing": 0.1}, "SimPO MixN smoothed 0.1"),
        ({"ranked": True, "label_smoothing": 0.1}, "MixNR smoothed 0.1"),
    ],
)
def test_other_losses_are_named(objective, name):
    counts = {"batch": 3, "meanfield": 5, "truncation": 3}
    assert name_method({"sampling": {"negatives": counts}, "objective": objective}, "cpo") == name


def test_the_other_models():
    assert name_method({}, "mle") == "MLE"
    assert name_method({"mle": {"scheduled_sampling": {}}}, "mle") == "MLE", "a run does not store an empty section"
    assert name_method({"mle": {"scheduled_sampling": {"sequences": 3}}}, "mle") == "PSS"
    assert name_method({}, "reference") == "reference"
    assert name_method({}, "somebody-else") == "somebody-else"


def test_every_baseline_has_the_name_of_its_file():
    for name in ("an", "anr", "bn", "bnr", "mn", "mnr", "tn", "tnr", "mixn", "mixnr"):
        resolved = load_config(shipped_configs()[f"baselines/{name}"]).model_dump(mode="json")
        assert name_method(resolved, "cpo").lower() == name
    online = load_config(shipped_configs()["baselines/anr_online"]).model_dump(mode="json")
    assert name_method(online, "cpo") == "ANR on-policy"
    online["sampling"]["refresh_reference"] = True
    assert name_method(online, "cpo") == "ANR on-policy with a moving reference"
    checkable = load_config(shipped_configs()["checkable"]).model_dump(mode="json")
    assert name_method(checkable, "cpo") == "3AN+1BN+2MN+1TNR"
    pss = load_config(shipped_configs()["baselines/pss"]).model_dump(mode="json")
    assert name_method(pss, "mle") == "PSS"


def test_negatives_are_described_with_the_parameters_that_are_not_the_papers():
    tree = config(autoregressive=2, greedy=1, batch=0, hot=1)
    assert describe_negatives(tree) == "2 autoregressive, 1 greedy, 1 hot"
    tree["sampling"]["kinds"] = {"hot": {"temperature": 1.4}, "shuffled": "mine:draw"}
    assert describe_negatives(tree) == "2 autoregressive, 1 greedy, 1 hot (temperature 1.4, top-k 50)"
    tree["sampling"]["top_p"] = 0.9
    assert describe_negatives(tree) == (
        "2 autoregressive (temperature 1, top-k 50, top-p 0.9), 1 greedy, 1 hot (temperature 1.4, top-k 50, top-p 0.9)"
    )
    assert describe_negatives({}) == ""


def test_base_and_source():
    resolved = RunConfig(name="x").model_dump(mode="json")
    assert name_base(resolved) == "llama from scratch, 4 x 160"
    assert name_base({"model": {"path": "openai-community/gpt2-xl"}}) == "openai-community/gpt2-xl"
    assert name_base({}) == "an unnamed model"
    assert (name_source(resolved), name_source({})) == ("synthetic", "unnamed data")
