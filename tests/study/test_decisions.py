import pytest

from study.decisions import decide, p_value
from study.estimates import one_sided_p
from study.sequential import nominal_levels
from tests.study.fake_plan import make_plan, make_values


def verdicts(plan, values):
    return {name: (item.verdict, item.seeds) for name, item in decide(plan, values).items()}


@pytest.mark.parametrize(
    ("greedy", "paper", "expected"),
    [
        (-0.2, 0.0, ("holds", "holds")),
        (0.2, 0.2, ("does not", "does not")),
        (0.0, 0.05, ("does not", "cannot be told at this size")),
    ],
)
def test_verdicts(greedy, paper, expected):
    """Values of SD .01: an effect of .2 is clear; +-.005 is within the negligible .02; .05 is at the margin of equivalence."""
    found = decide(make_plan(), make_values(greedy, paper, 8))
    assert tuple(item.verdict for item in found.values()) == expected


def test_the_reason_distinguishes_a_reversed_effect_from_a_negligible_one():
    reverse = decide(make_plan(), make_values(0.2, 0.0, 8))["H1"]
    none = decide(make_plan(), make_values(0.0, 0.0, 8))["H1"]
    assert reverse.reason == "the bound is crossed in the opposite direction"
    assert none.reason == "the interval is within ±0.02, which was registered as negligible"


def test_equivalence_is_two_one_sided_tests():
    result = decide(make_plan(), make_values(0.0, 0.02, 8))["H4"]
    values = [0.03, 0.01] * 4
    above, below = one_sided_p(values, "less", 0.05), one_sided_p(values, "greater", -0.05)
    assert [item.p_holds for item in result.results] == pytest.approx([2 * above, 2 * below])
    assert p_value(result.results) == pytest.approx(2 * max(above, below))
    assert result.verdict == "holds"


def test_a_look_counts_the_first_registered_seeds_alone():
    assert verdicts(make_plan(), make_values(-0.2, 0.0, 3)) == {
        "H1": ("not tested yet", 3),
        "H4": ("not tested yet", 3),
    }
    unclear = make_values(-0.004, 0.0, 6)  # +-.01 around -.004
    assert verdicts(make_plan(hypotheses=only("H1")), unclear) == {"H1": ("cannot be told at this size", 4)}
    assert verdicts(make_plan(hypotheses=only("H1")), make_values(-0.2, 0.0, 6)) == {"H1": ("holds", 4)}


def only(name):
    plan = make_plan()
    return {name: plan.hypotheses[name].model_dump() | {"negligible": None}}


def test_an_early_rejection_lasts(capsys):
    values = make_values(-0.2, 0.0, 8)
    for seed in (5, 6, 7, 8):
        values["rep"]["greedy/cpo"][seed] = 0.9
    decision = decide(make_plan(), values)["H1"]
    assert (decision.verdict, decision.standing.rejection.look, decision.seeds) == ("holds", 1, 4)


def test_a_missing_seed_delays_the_look():
    values = make_values(-0.2, 0.0, 8)
    del values["rep"]["greedy/cpo"][2]
    found = decide(make_plan(), values)
    assert (found["H1"].verdict, found["H1"].seeds) == ("not tested yet", 7)
    assert found["H4"].verdict == "holds"


def test_intervals_have_the_level_of_the_look():
    first, last = nominal_levels(0.05, (0.5, 1.0))
    early = decide(make_plan(), make_values(0.0, 0.0, 4))["H1"].results[0].estimate
    late = decide(make_plan(), make_values(0.0, 0.0, 8))["H1"].results[0].estimate
    assert (early.n, late.n) == (4, 8)
    # .01 * sqrt(4 / 3) / sqrt(4) * t(1 - .00517 / 2, 3), and .01 * sqrt(8 / 7) / sqrt(8) * t(1 - .04799 / 2, 7)
    assert (first, last) == pytest.approx((0.00517, 0.04799), abs=1e-4)
    assert early.high == pytest.approx(0.0057735 * 7.36, rel=0.01)
    assert late.high == pytest.approx(0.0037796 * 2.39, rel=0.01)


def test_without_any_run_nothing_is_tested():
    found = decide(make_plan(), {})
    assert {item.verdict for item in found.values()} == {"not tested yet"}
    assert found["H1"].results == ()
