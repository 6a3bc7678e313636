import pytest

from cpo_ray.report.headline import all_lost, cost_sentence, headline_sentences, text_sentence
from cpo_ray.report.run_contents import read_run
from tests.report.fake_run import make_fake_run
from tests.report.test_text_tables import estimate, row

MINUS = "\N{MINUS SIGN}"


@pytest.fixture
def table():
    rows = [
        row("mle", estimate(0.407, 0.38, 0.43), None),
        row("cpo", estimate(0.244, 0.2, 0.28), estimate(-0.163, -0.2, -0.12)),
    ]
    for each in rows:
        each |= {"win_rate": 0.0, "wins": 0, "ties": 0, "difference_to_mle": None}
    return rows


def test_the_sentence_on_texts_is_about_cpo_and_repetition_whatever_the_sign(table):
    assert text_sentence(table, "greedy") == (
        "cpo repeats itself less than continued MLE: 24.4% of the 4-grams in an answer repeat earlier ones, after MLE 40.7%, "
        f"in the truth 2.1%. On the same 40 prompts the difference is {MINUS}16.3 points (95% interval {MINUS}20.0 to "
        f"{MINUS}12.0, over prompts alone)."
    )
    scores = table[1]["texts"]["metrics"]["rep_4"]
    scores["to_baseline"] = estimate(0.05, 0.01, 0.09)
    assert text_sentence(table, "greedy").startswith("cpo repeats itself more than continued MLE")
    assert "+5.0 points" in text_sentence(table, "greedy")
    scores["to_baseline"] = estimate(0.05, -0.01, 0.11)
    assert text_sentence(table, "greedy").startswith("cpo repeats itself about as much as continued MLE")


def test_there_is_no_sentence_on_texts_without_something_to_compare(table):
    assert text_sentence(table, "top_p") is None
    assert text_sentence(table[:1], "greedy") is None
    table[1]["texts"]["metrics"]["rep_4"]["to_baseline"] = None
    assert text_sentence(table, "greedy") is None
    table[1]["texts"] = None
    assert text_sentence(table, "greedy") is None


def test_texts_lead_only_if_every_answer_lost(table):
    assert all_lost(table, "greedy")
    assert headline_sentences([], table, "greedy")[0].startswith("cpo repeats itself less")
    assert headline_sentences([], table, "greedy")[-1].startswith(
        "The judge preferred the ground truth to every answer"
    )
    table[0] |= {"ties": 1, "win_rate": 0.0125}
    assert not all_lost(table, "greedy")
    judged, texts = headline_sentences([], table, "greedy")
    assert judged == "Nothing can be compared yet: no model trained with CPO has been judged."
    assert texts.startswith("cpo repeats itself less")


def test_nothing_judged_and_nothing_measured_is_said():
    assert not all_lost([], None)
    assert headline_sentences([], [], None) == ["No answers have been judged yet, so there is no result to report."]


def test_the_cost_is_likelihood_and_time(tmp_path):
    make_fake_run(tmp_path / "run", rows=10, steps=10)
    run = read_run(tmp_path / "run")
    assert cost_sentence(run) is None, "no likelihood on validation rows"
    run.manifests["models/cpo"] |= {"summary": {"validation_nll": 4.2}, "seconds": 30.0}
    run.manifests["models/mle"] |= {"summary": {"validation_nll": 4.25}, "seconds": 20.0}
    run.manifests["groups/train"]["seconds"] = 12.0
    assert cost_sentence(run) == (
        "What it cost: the truth's negative log-likelihood on validation prompts is 4.200 nat per token, after MLE 4.250 "
        f"({MINUS}0.050); negatives and training took 42 s, MLE 20 s."
    )
