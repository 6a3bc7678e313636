import re

import pytest
from rich.console import Console

from cpo_ray.report.terminal import format_texts
from cpo_ray.report.text_tables import render_texts


def estimate(value, low=None, high=None):
    return {"value": value, "low": low, "high": high, "n": 40}


def row(model, answers, to_baseline, run="demo", truth=0.021):
    sides = {"answers": answers, "truth": estimate(truth, 0.01, 0.03), "to_truth": None, "to_baseline": to_baseline}
    return {
        "run": run, "model": model, "label": model, "decoding": "greedy",
        "texts": {"rows": 40, "empty": 0, "baseline": to_baseline and "mle", "metrics": {"rep_4": sides}},
    }  # fmt: skip


@pytest.fixture
def table():
    return [
        row("mle", estimate(0.407, 0.38, 0.43), None),
        row("cpo", estimate(0.244, 0.2, 0.28), estimate(-0.163, -0.2, -0.12)),
    ]


def test_the_page_has_the_truth_beside_the_models_and_the_differences_below(table):
    page = render_texts({"decodings": ["greedy"], "table": table})
    values, differences = re.findall(r"<tbody>(.*?)</tbody>", page)
    assert re.findall(r">(truth|mle|cpo)</th>", page) == ["truth", "mle", "cpo", "cpo"]
    assert re.findall(r"0\.\d{3}", values) == [
        "0.021", "0.010", "0.030", "0.407", "0.380", "0.430", "0.244", "0.200", "0.280",
    ]  # fmt: skip
    assert "<b>\N{MINUS SIGN}0.163</b><br><small>\N{MINUS SIGN}0.200 to \N{MINUS SIGN}0.120</small>" in differences
    assert "over prompts alone" in page


def test_metrics_that_no_short_table_has_can_be_opened(table):
    table[0]["texts"]["metrics"]["rep_1"] = table[1]["texts"]["metrics"]["rep_1"] = table[0]["texts"]["metrics"][
        "rep_4"
    ]
    page = render_texts({"decodings": ["greedy"], "table": table})
    shown, opened = page.split("<summary>The other text metrics, greedy decoding</summary>")
    assert ("rep-4" in shown, "rep-1" in shown, "rep-1" in opened) == (True, False, True)


def test_what_rounds_to_zero_has_no_sign(table):
    table[1]["texts"]["metrics"]["rep_4"]["to_baseline"] = estimate(-0.0001, -0.0004, 0.0004)
    page = render_texts({"decodings": ["greedy"], "table": table})
    assert "<td>0.000<br><small>0.000 to 0.000</small></td>" in page


def test_a_difference_that_may_be_zero_is_not_bold(table):
    table[1]["texts"]["metrics"]["rep_4"]["to_baseline"] = estimate(-0.01, -0.03, 0.02)
    assert "<b>" not in render_texts({"decodings": ["greedy"], "table": table})


def test_a_value_that_is_not_defined_is_a_dash(table):
    table[1]["texts"]["metrics"]["rep_4"]["answers"] = estimate(None)
    assert "<td>\N{EN DASH}</td>" in render_texts({"decodings": ["greedy"], "table": table})


def test_truths_that_differ_are_named_by_their_runs(table):
    page = render_texts(
        {"decodings": ["greedy"], "table": [*table, row("cpo", estimate(0.3), None, "other", truth=0.5)]}
    )
    assert re.findall(r">([^<]*truth)</th>", page) == ["demo: truth", "other: truth"]


def test_the_terminal_ends_with_the_truth(table):
    metrics = dict.fromkeys(
        ("rep_4", "loops", "tokens", "distinct_2", "self_bleu"), table[0]["texts"]["metrics"]["rep_4"]
    )
    table[0]["texts"]["metrics"] = metrics
    console = Console(width=80, record=True)
    console.print(format_texts({"table": table[:1], "decoding": "greedy"}))
    lines = [line for line in console.export_text().splitlines() if "  0.4" in line or "  0.02" in line]
    assert [line.split()[1] for line in lines] == ["mle", "truth"]
    assert format_texts({"table": [], "decoding": None}) is None
