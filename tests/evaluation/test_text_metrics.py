"""Answers of words, where every word is a token."""

import json
import math

import numpy as np
import pytest

from cpo_ray.errors import ArtifactError
from cpo_ray.evaluation.text_metrics import Instruments, TextMeasurer
from cpo_ray.evaluation.text_scores import ANSWER_METRICS, SET_METRICS, TEXT_METRICS
from cpo_ray.records import Generation

TRUTHS = ["a b c d e", "f g h i", "k l m n o p q r", "s t"]
CONFIGURED = {"similarity", "energy_distance", "lints", "reference_logp", "heldout_logp"}
MODEL = ["a b a b a b", "", "k l m n o p q r s t", "s"]
BASELINE = ["a b c d e", "f f f f f", "k l m n o p q r s t", "s t"]


def encode(texts):
    return [[ord(word) for word in text.split()] for text in texts]


def generations(responses):
    return [
        Generation(id=str(n), prompt="p", reference=truth, response=text, tokens=0, finish_reason="stop")
        for n, (truth, text) in enumerate(zip(TRUTHS, responses, strict=True))
    ]


@pytest.fixture
def measurer():
    return TextMeasurer(generations(MODEL), Instruments(encode, max_tokens=8), 17, {})


def measure(measurer, texts, **scored):
    return measurer.measure(generations(texts), "file", {name: np.array(values) for name, values in scored.items()})


@pytest.fixture
def scores(measurer):
    return measurer.compare(measure(measurer, MODEL), measure(measurer, BASELINE), "mle")


def values(scores, name):
    return {side: estimate and estimate["value"] for side, estimate in scores["metrics"][name].items()}


def test_every_metric_has_every_side(scores):
    assert list(scores["metrics"]) == [name for name in TEXT_METRICS if name not in CONFIGURED]
    for name, score in scores["metrics"].items():
        assert score["answers"] is not None
        assert (score["truth"] is None) == (score["to_truth"] is None) == (name == "length_distance")
    json.dumps(scores, allow_nan=False)


def test_repetition_is_averaged_over_the_answers_that_are_long_enough(scores):
    """Bigrams: ab ba ab ba ab has 3 repeats of 5; the third answer, cut to 8 tokens, has none; the others have no bigrams."""
    assert values(scores, "rep_2") == pytest.approx(
        {"answers": 0.3, "truth": 0, "to_truth": 0.3, "to_baseline": (0.6 - 0) / 2}
    )
    assert scores["metrics"]["rep_2"]["answers"]["n"] == 2
    assert scores["metrics"]["rep_2"]["truth"]["n"] == 4
    assert scores["metrics"]["rep_2"]["to_truth"]["n"] == 2, "prompts where both have bigrams"
    assert scores["metrics"]["rep_4"]["answers"]["value"] == pytest.approx((1 / 3 + 0) / 2)


def test_an_empty_answer_is_counted_and_has_a_length_and_no_repetition(scores, measurer):
    assert (scores["rows"], scores["empty"], scores["baseline"]) == (4, 1, "mle")
    assert values(scores, "empty") == {"answers": 0.25, "truth": 0, "to_truth": 0.25, "to_baseline": 0.25}
    assert values(scores, "tokens") == {
        "answers": (6 + 0 + 8 + 1) / 4, "truth": (5 + 4 + 8 + 2) / 4, "to_truth": -1.0, "to_baseline": -1.25,
    }  # fmt: skip
    row = measurer.rows(measure(measurer, MODEL))[1]
    assert row == {
        "id": "1", "rep_1": None, "rep_2": None, "rep_3": None, "rep_4": None, "loops": 0.0, "empty": 1.0, "tokens": 0.0,
    }  # fmt: skip


def test_answers_that_are_all_empty_are_null_and_never_nan(measurer):
    scores = measurer.compare(measure(measurer, [""] * 4), None, "mle")
    json.dumps(scores, allow_nan=False)
    for name in (*(f"rep_{n}" for n in (1, 2, 3, 4)), *(f"distinct_{n}" for n in (1, 2, 3, 4)), "self_bleu"):
        assert scores["metrics"][name]["answers"] == {"value": None, "low": None, "high": None, "n": 0}, name
        assert scores["metrics"][name]["truth"]["value"] is not None
        assert scores["metrics"][name]["to_truth"]["value"] is None
    assert scores["baseline"] is None
    assert scores["metrics"]["tokens"]["answers"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 4}
    assert scores["metrics"]["length_distance"]["answers"]["value"] == 19 / 4


def test_the_set_has_its_diversity_and_its_lengths(scores):
    """Bigrams: ab ba ab ba ab and the seven of k ... r: 2 + 7 different of 12. The lengths 0 1 6 8 and 2 4 5 8."""
    assert values(scores, "distinct_2")["answers"] == 9 / 12
    assert values(scores, "distinct_2")["truth"] == 1
    assert values(scores, "length_distance") == {
        "answers": (2 + 3 + 1 + 0) / 4, "truth": None, "to_truth": None, "to_baseline": 6 / 4 - 1 / 4,
    }  # fmt: skip


def test_without_a_baseline_there_is_no_difference_to_it(measurer):
    scores = measurer.compare(measure(measurer, MODEL), None, "mle")
    assert {score["to_baseline"] for score in scores["metrics"].values()} == {None}


def test_the_truth_against_itself_differs_in_nothing(measurer):
    truth = measure(measurer, TRUTHS)
    scores = measurer.compare(truth, truth, "mle")
    for name, score in scores["metrics"].items():
        assert score["to_baseline"]["value"] == score["to_baseline"]["low"] == score["to_baseline"]["high"] == 0, name
        assert score["truth"] is None or score["truth"] == score["answers"], name


def test_answers_to_other_prompts_are_refused(measurer):
    with pytest.raises(ArtifactError, match=r"generations/mle/hot\.jsonl has other prompts"):
        measurer.measure(generations(MODEL)[:3], "generations/mle/hot.jsonl", {})


def embed(texts):
    """The share of four letters in a text; nothing for an empty one."""
    return np.array([[text.count(letter) for letter in "abcd"] for text in texts], dtype=np.float32)


def test_similarity_and_energy_distance_compare_with_the_truth(measurer):
    texts = ["a b", "", "a b c", "b"]
    rows = [{**row, "reference": truth} for row, truth in zip(generations(texts), ["a", "b", "c", "d"], strict=True)]
    measurer = TextMeasurer(rows, Instruments(encode, 8, embed), 17, {})
    answers = measurer.measure(rows, "file", {})
    assert answers.each["similarity"] == pytest.approx([0.5**0.5, 0, 3**-0.5, 0]), "0 for the empty one"
    scores = measurer.compare(answers, None, None)["metrics"]
    assert scores["similarity"]["truth"] is scores["energy_distance"]["truth"] is None
    ours, truth = embed(texts), embed(["a", "b", "c", "d"])
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    mean = lambda left, right: np.mean([np.linalg.norm(left[i] - right[j]) for i, j in pairs])  # noqa: E731
    expected = 2 * mean(ours, truth) - mean(ours, ours) - mean(truth, truth)
    assert scores["energy_distance"]["answers"]["value"] == pytest.approx(expected)


def test_metrics_that_were_scored_elsewhere_are_compared_like_the_others():
    truth = {"reference_logp": np.array([-1.0, -2.0, -3.0, -4.0])}
    measurer = TextMeasurer(generations(MODEL), Instruments(encode, 8), 17, truth)
    ours = measure(measurer, MODEL, reference_logp=[-2.0, math.nan, -2.0, -2.0])
    theirs = measure(measurer, BASELINE, reference_logp=[-1.0, -1.0, -1.0, math.nan])
    scores = measurer.compare(ours, theirs, "mle")
    assert values(scores, "reference_logp") == {
        "answers": -2, "truth": -2.5, "to_truth": (-1 + 1 + 2) / 3, "to_baseline": -1,
    }  # fmt: skip
    assert measurer.rows(ours)[1]["reference_logp"] is None


def test_lints_of_a_text_without_words_are_not_defined():
    lint = lambda texts: [100.0 * text.count("a") / len(text.split()) if text.split() else None for text in texts]  # noqa: E731
    measurer = TextMeasurer(generations(MODEL), Instruments(encode, 8, lint=lint), 17, {})
    scores = measurer.compare(measure(measurer, MODEL), None, None)
    assert values(scores, "lints")["answers"] == pytest.approx(50 / 3)
    assert scores["metrics"]["lints"]["answers"]["n"] == 3


def test_every_metric_is_defined_once():
    assert not ANSWER_METRICS.keys() & SET_METRICS.keys()
    assert len({metric.about for metric in TEXT_METRICS.values()}) == len(TEXT_METRICS)
