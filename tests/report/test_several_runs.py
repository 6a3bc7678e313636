"""Several runs in one report: which models are compared, and the paper's layout."""

import json
import re

import pytest

from cpo_ray.errors import ArtifactError
from cpo_ray.evaluation.statistics import holm, paired_difference
from cpo_ray.report.findings import find_results
from cpo_ray.report.run_contents import read_runs
from cpo_ray.report.write import write_report
from tests.report.fake_run import make_fake_run
from tests.report.test_write import Elements, read_outcomes

LLAMA = {"data": {"source": "dolly"}, "model": {"path": "openlm-research/open_llama_3b"}, "judge": "gpt-x"}
NEGATIVES = {"autoregressive": 0, "batch": 0, "meanfield": 0, "truncation": 0}
SMALL = {"rows": 60, "steps": 12, "decodings": ("greedy",)}


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    base = tmp_path_factory.mktemp("runs")
    merged = {"reference": 0.36, "mle": 0.35, "cpo": 0.45, "merged-0.30": 0.5, "merged-0.70": 0.44}
    make_fake_run(base / "mixnr", name="mixnr", models=merged, **LLAMA, **SMALL)
    only = {"negatives": {**NEGATIVES, "autoregressive": 11}}
    make_fake_run(base / "anr", name="anr", models={"mle": 0.35, "cpo": 0.8}, sampling=only, **LLAMA, **SMALL)
    sampled = {"scheduled_sampling": {"sequences": 3}}
    make_fake_run(base / "pss", name="pss", models={"mle": 0.15}, mle=sampled, **LLAMA, **SMALL)
    return [base / "mixnr", base / "anr", base / "pss"]


@pytest.fixture(scope="module")
def written(roots, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    summary = write_report(roots, out)
    return summary, json.loads((out / "report.json").read_text()), (out / "index.html").read_text(), out


def test_a_model_is_compared_with_mle_of_its_own_run_and_pss_with_mle_of_another(roots, written):
    summary, *_ = written
    rows = {row["label"]: row for row in summary["table"]}
    assert rows["anr: cpo"]["difference_to_mle"]["baseline"] == "anr: mle"
    assert rows["mixnr: merged-0.30"]["difference_to_mle"]["baseline"] == "mixnr: mle"
    assert rows["pss: mle"]["method"] == "PSS"
    assert rows["pss: mle"]["difference_to_mle"]["baseline"] == "mixnr: mle"
    assert [label for label, row in rows.items() if row["is_baseline"]] == ["mixnr: mle", "anr: mle"]


def test_holm_spans_all_runs(roots, written):
    summary, *_ = written
    found = [row["difference_to_mle"] for row in summary["table"] if row["difference_to_mle"]]
    assert len(found) == 6
    assert [item["p_adjusted"] for item in found] == holm([item["p"] for item in found])
    expected = paired_difference(read_outcomes(roots[2], "mle"), read_outcomes(roots[0], "mle"), seed=17)
    assert found[-1]["value"] == expected.value


def test_the_headline_names_run_and_baseline(written):
    summary, *_ = written
    assert summary["headline"].startswith("anr: cpo (the best of 4 models trained with CPO)")
    assert "continued MLE (anr: mle) has" in summary["headline"]
    assert "corrected for 6 comparisons" in summary["headline"]


def test_the_layout_is_the_paper_s(written):
    _, report, *_ = written
    rates, reward, mauve, repetition, *_ = report["paper"]
    assert [table["metric"] for table in report["paper"]] == [
        "win_rate", "reward_rate", "mauve", "rep_4", "distinct_2", "similarity",
    ]  # fmt: skip
    assert (rates["layout"], mauve["layout"]) == ("tables 1 to 3", "table 4")
    assert (rates["base"], rates["source"], rates["judges"]) == ("openlm-research/open_llama_3b", "dolly", ["gpt-x"])
    columns = [(column["run"], column["method"], column["alpha"]) for column in rates["columns"]]
    assert columns == [
        ("mixnr", "MLE", None),
        ("pss", "PSS", None),
        ("mixnr", "MixNR", 0.0),
        ("mixnr", "MixNR", 0.3),
        ("mixnr", "MixNR", 0.7),
        ("anr", "ANR", None),
    ]
    assert rates["left_out"] == ["anr: mle"], "made with the same settings as mixnr's"
    table = {row["label"]: row for row in report["table"]}
    for column in rates["columns"]:
        row = table[f"{column['run']}: {column['model']}"]
        assert (column["value"], column["low"], column["high"]) == (row["win_rate"], row["low"], row["high"])
    assert mauve["columns"][0]["deviation"] == 0.011
    anr = reward["columns"][-1]
    assert (anr["value"], anr["low"], anr["high"]) == pytest.approx((0.82, 0.78, 0.86))
    assert (repetition["truth"], mauve["truth"], report["paper"][-1]["truth"]) == (0.1, None, None)
    text = table["anr: cpo"]["texts"]["metrics"]["rep_4"]
    anr = repetition["columns"][-1]
    assert {key: anr[key] for key in ("value", "low", "high")} == {
        key: text["answers"][key] for key in ("value", "low", "high")
    }
    assert anr["to_baseline"] == text["to_baseline"]
    assert mauve["columns"][-1]["to_baseline"] is None


def test_mle_models_of_other_settings_keep_their_columns(tmp_path):
    for name, steps in (("long", 300), ("short", 200)):
        make_fake_run(tmp_path / name, name=name, models={"mle": 0.4, "cpo": 0.5}, training={"steps": steps}, **SMALL)
    write_report([tmp_path / "long", tmp_path / "short"], tmp_path / "out")
    rates = json.loads((tmp_path / "out" / "report.json").read_text())["paper"][0]
    assert [(column["run"], column["method"]) for column in rates["columns"]] == [
        ("long", "MLE"), ("short", "MLE"), ("long", "MixNR"), ("short", "MixNR"),
    ]  # fmt: skip


def test_other_data_or_another_base_model_is_another_table_and_no_baseline(tmp_path):
    make_fake_run(tmp_path / "a", name="a", models={"mle": 0.4, "cpo": 0.5}, **SMALL)
    make_fake_run(tmp_path / "b", name="b", models={"cpo": 0.5}, model={"path": "gpt2"}, **SMALL)
    summary = write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [table["base"] for table in report["paper"]][:2] == ["llama from scratch, 4 x 160", "gpt2"]
    assert {row["label"]: row["difference_to_mle"] for row in summary["table"]}["b: cpo"] is None


def test_verdicts_of_different_judges_are_not_compared(tmp_path):
    make_fake_run(tmp_path / "a", name="a", models={"mle": 0.4, "cpo": 0.5}, judge="gpt-x", **SMALL)
    make_fake_run(tmp_path / "b", name="b", models={"cpo": 0.9}, judge="gpt-y", **SMALL)
    rows = {row["label"]: row for row in find_results(read_runs([tmp_path / "a", tmp_path / "b"]))}
    assert rows["a: cpo"]["difference_to_mle"] is not None
    assert rows["b: cpo"]["difference_to_mle"] is None


def test_the_page_distinguishes_the_runs(written):
    *_, page, out = written
    found = Elements(page).found
    ids = [attributes["id"] for _, attributes in found if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert [tag for tag, _ in found].count("table") == page.count("<caption>")
    assert "<h1>mixnr vs anr vs pss</h1>" in page
    differing = page.split('<div class="differences">')[1].split("</div>")[0]
    for key in ("sampling.negatives.autoregressive", "mle.scheduled_sampling.sequences"):
        assert f"<code>{key}</code>" in differing
    assert "learning_rate" not in differing, "the same in all"
    assert page.count("The exact configuration, resolved") == 3
    figures = {path.stem for path in (out / "figures").iterdir()}
    assert figures >= {"win-rate-negatives", "win-rate-reward", "win-rate-alpha", "mauve-alpha", "cpo-loss"}
    svg = (out / "figures" / "win-rate-negatives.svg").read_text()
    assert re.search("mixnr, MLE .*mixnr, MixNR .*anr, MLE .*anr, ANR", svg)


def test_samples_have_the_answers_of_all_runs(written):
    *_, page, _ = written
    samples = json.loads(Elements(page).script_texts[0])
    assert samples["models"][:2] == ["mixnr: reference", "mixnr: mle"]
    assert samples["models"][-1] == "pss: mle"
    assert samples["baselines"] == [1, -1, 1, 1, 1, -1, 5, -1]
    assert len(samples["rows"]) == 60
    assert all(len(row["answers"][0]) == 8 for row in samples["rows"])


def test_cards_of_several_runs_have_separate_folders(written):
    *_, out = written
    cards = {path.relative_to(out / "cards").as_posix() for path in (out / "cards").rglob("README.md")}
    assert {"1-mixnr/cpo/README.md", "2-anr/cpo/README.md", "3-pss/mle/README.md"} <= cards


def test_a_report_removes_the_files_of_an_earlier_report(roots, tmp_path):
    write_report(roots, tmp_path)
    assert (tmp_path / "figures" / "win-rate-negatives.svg").is_file()
    (tmp_path / "figures" / "mine.svg").write_text("not the report's")
    write_report([roots[0], roots[2]], tmp_path)
    assert {path.name for path in (tmp_path / "cards").iterdir()} == {"1-mixnr", "2-pss"}
    report = json.loads((tmp_path / "report.json").read_text())
    kept = {f"figures/{path.name}" for path in (tmp_path / "figures").iterdir()}
    assert kept == {*report["figures"], "figures/mine.svg"}
    assert "figures/win-rate-negatives.svg" not in kept


def test_runs_with_the_same_name_are_distinguished_by_their_folders(tmp_path):
    for folder in ("a", "b"):
        make_fake_run(tmp_path / folder, models={"cpo": 0.5}, **SMALL)
    labels = [run.label for run in read_runs([tmp_path / "a", tmp_path / "b"])]
    assert labels == [f"demo in {tmp_path / 'a'}", f"demo in {tmp_path / 'b'}"]
    with pytest.raises(ArtifactError, match="given twice"):
        read_runs([tmp_path / "a", tmp_path / "b" / ".." / "a"])


def test_an_unfinished_run_can_be_reported_with_a_finished_one(tmp_path, roots):
    (tmp_path / "bare").mkdir()
    summary = write_report([roots[0], tmp_path / "bare"], tmp_path / "out")
    assert "bare: verdicts" in summary["missing"]
    assert not [line for line in summary["missing"] if line.startswith("mixnr")]
    assert "The run bare does not hold" in (tmp_path / "out" / "index.html").read_text()


def test_hostile_names_stay_text_and_inside_the_report(tmp_path):
    for folder, name in (("a", "<script>alert(1)</script>"), ("b", "../../../<img src=x>")):
        make_fake_run(tmp_path / "runs" / folder, models={"mle": 0.4, "cpo": 0.5}, name=name, **SMALL)
    write_report([tmp_path / "runs" / "a", tmp_path / "runs" / "b"], tmp_path / "out")
    elements = Elements((tmp_path / "out" / "index.html").read_text())
    assert [attributes for tag, attributes in elements.found if tag == "script"] == [
        {"type": "application/json", "id": "sample-data"}, {},
    ]  # fmt: skip
    assert not [tag for tag, _ in elements.found if tag == "img"]
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "out"}
    assert len(list((tmp_path / "out" / "cards").iterdir())) == 2


def test_no_model_is_marked_best_if_all_are_equal(tmp_path):
    make_fake_run(tmp_path / "a", models={"mle": 0.4, "cpo": 0.5}, **SMALL)
    for path in (tmp_path / "a" / "verdicts").rglob("greedy.jsonl"):
        rows = [json.loads(line) | {"outcome": "loss"} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = write_report([tmp_path / "a"], tmp_path / "out")
    assert summary["headline"].startswith("cpo repeats itself more than continued MLE"), "win rates of 0 rank nothing"
    assert "win rates (0.0%) rank nothing" in summary["sentences"][-1]
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<b>" not in page.split('<div class="paper">')[1].split("</table>")[0]
