import io

import pytest
from rich.console import Console

from cpo_ray.artifacts import write_json
from cpo_ray.stages.round_figures import (
    GoldLikelihood,
    describe_round,
    measure_gold,
    measure_round,
    round_table,
    stop_reason,
)

FIRST = GoldLikelihood(train_logp=-20.0, nll=4.0)
TRAINED = {"steps": 7, "loss": 2.0, "accuracy": 0.5, "gold_drift": -0.5, "validation_loss": 2.25}


def test_the_gold_under_a_reference_is_that_of_its_groups(tmp_path):
    for split, logp in (("train", -20.0), ("validation", -10.0)):
        gold = {"count": 4, "tokens": 10, "mean_ref_logp": logp}
        write_json(tmp_path / split / "stats.json", {"gold": gold})
    assert measure_gold(tmp_path / "train", tmp_path / "validation") == FIRST  # 4 responses of -10 nats over 10 tokens
    assert measure_gold(tmp_path / "train") == GoldLikelihood(-20.0)


def test_the_figures_of_a_round_are_against_both_references():
    figures = measure_round(2, TRAINED | {"validation_nll": 4.2}, FIRST, shift=-1.5)
    assert (figures["gold_drift"], figures["first_drift"]) == (-0.5, -2.0)
    assert figures["nll"] == pytest.approx(4.2)
    assert figures["nll_increase"] == pytest.approx(0.2)
    assert describe_round(figures) == (
        "round 2: loss 2.0000, accuracy 0.5000, gold -0.500 nat per response against its reference, -2.000 against the first; "
        "validation: 4.2000 nat per token of the gold (+0.200 against the first reference)"
    )


def test_without_a_validation_split_nothing_is_decided():
    figures = measure_round(1, TRAINED, GoldLikelihood(-20.0), shift=0.0)
    assert (figures["nll"], figures["nll_increase"]) == (None, None)
    assert stop_reason([figures], 3, 0.1) is None
    assert "validation" not in describe_round(figures)


def rounds(*nll):
    """Rounds whose gold has these NLLs on the validation split, nat per token; the reference's is 4."""
    return [measure_round(number, TRAINED | {"validation_nll": each}, FIRST, 0.0) for number, each in enumerate(nll, 1)]


@pytest.mark.parametrize(
    ("nll", "limit", "words"),
    [
        ([3.5], 0.25, None),
        ([4.25], 0.25, None),  # as much as is allowed
        ([4.5], None, None),
        ([4.5, 4.0], 0.25, None),  # the last one decides
        ([4.0, 4.5], 0.25, "policy of round 1 is the result; skipped: round 3, 4"),
        ([4.5], 0.25, "its policy is the result all the same, as there is none before it; skipped: round 2, 3, 4"),
        ([4.0, 4.0, 4.0, 4.5], 0.25, "it is discarded, and the policy of round 3 is the result"),
    ],
)
def test_the_rule_compares_the_last_round_with_the_first_reference(nll, limit, words):
    reason = stop_reason(rounds(*nll), 4, limit)
    assert (reason is None) == (words is None)
    if words:
        assert reason.endswith(words)
        assert "more than rounds_stop.max_nll_increase 0.25" in reason


def test_the_table_has_the_first_reference_and_every_round_in_80_columns():
    out = io.StringIO()
    each = [{**figures, "kept": figures["round"] < 2} for figures in rounds(4.0, 4.4)]
    Console(file=out, width=80).print(round_table(each, 4.0))
    _, head, *lines = out.getvalue().splitlines()
    assert head.split() == [
        "round",
        "steps",
        "loss",
        "accuracy",
        "drift",
        "from",
        "first",
        "val.",
        "loss",
        "gold",
        "NLL",
    ]
    assert [line.split()[0::7] for line in lines] == [["0", "4.0000"], ["1", "4.0000"], ["2", "4.4000"]]
    assert [line.split()[-1] for line in lines] == ["reference", "kept", "discarded"]
