import json
import math
import re
import shutil
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest
import yaml
from rich.console import Console

from cpo_ray.artifacts import read_jsonl
from cpo_ray.errors import ArtifactError
from cpo_ray.evaluation.statistics import holm, paired_difference, win_rate_interval
from cpo_ray.report.terminal import format_table
from cpo_ray.report.write import write_report
from tests.report.fake_run import CONFIG, HOSTILE, MODELS, make_fake_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("fake") / "run"
    make_fake_run(root)
    return root


@pytest.fixture(scope="module")
def written(run):
    return write_report([run], run / "report")


@pytest.fixture
def small(tmp_path):
    """A run directory that a test may change."""
    make_fake_run(tmp_path / "run", rows=30, steps=20, decodings=("greedy",))
    return tmp_path / "run"


def read_outcomes(root, model, decoding="greedy"):
    return {row["id"]: row["outcome"] for row in read_jsonl(root / "verdicts" / model / f"{decoding}.jsonl")}


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.script_texts, self._script = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self._script = tag == "script"

    def handle_data(self, data):
        if self._script:
            self.script_texts.append(data)
            self._script = False


def test_table_has_rates_differences_and_scores(run, written):
    assert [(row["decoding"], row["model"]) for row in written["table"]] == [
        (decoding, model) for decoding in ("greedy", "top_p") for model in MODELS
    ]
    row = next(row for row in written["table"] if row["model"] == "cpo")
    ours, mle = read_outcomes(run, "cpo"), read_outcomes(run, "mle")
    assert (row["win_rate"], row["low"], row["high"]) == win_rate_interval(list(ours.values()))
    expected = paired_difference(ours, mle, seed=CONFIG["seed"])
    difference = row["difference_to_mle"]
    assert (difference["value"], difference["low"], difference["p"]) == (expected.value, expected.low, expected.p_value)
    assert difference["excluded"] == expected.excluded > 0
    others = [paired_difference(read_outcomes(run, name), mle, seed=0).p_value for name in MODELS if name != "mle"]
    assert difference["p_adjusted"] == holm(others)[1]
    verdicts = [item for item in read_jsonl(run / "verdicts" / "cpo" / "greedy.jsonl") if item["outcome"] != "invalid"]
    assert len(verdicts) < 500
    assert row["flip_rate"] == sum(item["flipped"] for item in verdicts) / len(verdicts)
    assert row["mauve_deviation"] == 0.011
    answers = read_jsonl(run / "generations" / "cpo" / "greedy.jsonl")
    assert row["mean_length"] == sum(len(answer["response"].split()) for answer in answers) / 500


def test_headline_states_whether_the_difference_is_significant(written, small):
    assert re.match(
        r"^(cpo|merged-0.\d0) \(the best of 3 models trained with CPO\) has a win rate of", written["headline"]
    )
    assert "not a significant difference" in written["headline"]
    for row in read_jsonl(small / "verdicts" / "cpo" / "greedy.jsonl")[:1]:
        changed = [{**row, "id": f"{index:016x}", "outcome": "win"} for index in range(30)]
    (small / "verdicts" / "cpo" / "greedy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    assert "This is significant (p" in write_report([small], small / "report")["headline"]


def test_json_is_valid_and_figures_are_files(run, written):
    report = json.loads((run / "report" / "report.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert report["table"] == json.loads(json.dumps(written["table"]))
    assert report["runs"][0]["missing"] == []
    assert report["runs"][0]["command"] == "cpo-ray run config.yaml --run-dir runs/demo-again"
    assert report["runs"][0]["config"] == CONFIG
    first = report["runs"][0]["first_step"]
    assert first["formula"] == "log 12!"
    assert first["expected"] == pytest.approx(math.log(math.factorial(12)))
    assert first["loss"] == 19.9872
    assert report["runs"][0]["training"]["reference"]["first"]["loss"] < 50, "the row before the restart must not count"
    assert len(report["figures"]) == 14
    for name in report["figures"]:
        ET.parse(run / "report" / name)


def test_page_is_one_file_without_external_resources(run, written):
    elements = Elements((run / "report" / "index.html").read_text(encoding="utf-8"))
    for tag, attributes in elements.found:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert re.match(r"(#|data:)|$", attributes.get(name, "")), (tag, attributes)
    assert not re.search(r"@import|url\(", (run / "report" / "index.html").read_text(encoding="utf-8"))
    policy = next(attributes["content"] for _, attributes in elements.found if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'")


def test_page_is_accessible(run, written):
    found = Elements((run / "report" / "index.html").read_text(encoding="utf-8")).found
    tags = [tag for tag, _ in found]
    assert {"header", "nav", "main", "footer", "caption"} <= set(tags)
    assert tags.count("h1") == 1
    assert tags.count("table") == tags.count("caption")
    assert all("scope" in attributes for tag, attributes in found if tag == "th")
    ids = [attributes["id"] for _, attributes in found if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = {name for _, attributes in found for name in attributes.get("aria-labelledby", "").split()}
    assert named <= set(ids)


def test_hostile_text_stays_text(run, small):
    image = "<img src=x onerror=alert(1)>"
    for folder in ("generations", "verdicts"):
        (small / folder / "cpo").rename(small / folder / image)
    (small / "environment.json").write_text(json.dumps({"git_revision": HOSTILE, "python": HOSTILE}))
    config = {**CONFIG, "name": "<script>alert(1)</script>", "judge": {"model": HOSTILE}}
    config["generation"] = {**CONFIG["generation"], "models": [*MODELS, image]}
    (small / "config.json").write_text(json.dumps(config))
    write_report([small], small / "report")
    elements = Elements((small / "report" / "index.html").read_text(encoding="utf-8"))
    scripts = [attributes for tag, attributes in elements.found if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "sample-data"}, {}]
    assert not [tag for tag, _ in elements.found if tag == "img"]
    samples = json.loads(elements.script_texts[0])
    assert samples["rows"][0]["prompt"] == HOSTILE
    assert samples["rows"][0]["category"] == "sorting"
    assert "<" not in elements.script_texts[0]


def test_the_expected_first_loss_excludes_masked_candidates(small):
    path = small / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    first = next(row for row in rows if row["stage"] == "cpo" and row["step"] == 1)
    first |= {"loss": 17.5, "expected_loss": 17.5, "masked": 4}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_report([small], small / "report")
    page = (small / "report" / "index.html").read_text(encoding="utf-8")
    assert "must be log 12! without the masked = 17.5000" in page
    assert "4 of the step&#x27;s candidates were masked" in page or "4 of the step's candidates were masked" in page


PARTS = {
    "config.json": "config.json is not there",
    "environment.json": "environment.json is not there",
    "metrics.jsonl": "No training metrics",
    "groups": "No candidate groups",
    "generations": "No generated answers",
    "verdicts": "No answers have been judged",
    "mauve": "MAUVE scores",
    "text_metrics": "No text metrics",
}


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_is_named(small, part):
    target = small / part
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    summary = write_report([small], small / "report")
    page = (small / "report" / "index.html").read_text(encoding="utf-8")
    assert len(summary["missing"]) == (2 if part == "groups" else 1)
    assert PARTS[part] in page
    if part == "verdicts":
        assert all(row["win_rate"] is None for row in summary["table"])
        assert summary["table"][0]["mauve"] is not None
    Console(quiet=True).print(format_table(summary))


def test_an_empty_run_directory_is_reported_as_empty(tmp_path):
    summary = write_report([tmp_path], tmp_path / "report")
    assert summary["table"] == []
    assert len(summary["missing"]) == 9
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert page.count('class="absent"') == 11
    assert json.loads((tmp_path / "report" / "report.json").read_text())["runs"][0]["first_step"] is None
    assert json.loads((tmp_path / "report" / "report.json").read_text())["runs"][0]["command"] is None
    Console(quiet=True).print(format_table(summary))
    with pytest.raises(ArtifactError, match="no run directory"):
        write_report([tmp_path / "nowhere"], tmp_path / "report")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config.json", "{", r"config\.json is not JSON"),
        ("metrics.jsonl", '{"step": 1}\n', r"metrics\.jsonl:1 has no stage"),
        ("verdicts/cpo/greedy.jsonl", '{"id": "x"}\n', r"greedy\.jsonl:1 lacks answers"),
        ("generations/cpo/greedy.jsonl", "broken\n{}\n", r"greedy\.jsonl:1 is not JSON"),
    ],
)
def test_a_damaged_file_is_named(small, file, text, message):
    (small / file).write_text(text)
    with pytest.raises(ArtifactError, match=message):
        write_report([small], small / "report")


def test_numbers_that_are_not_finite_do_not_break_the_report(small):
    with (small / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "cpo", "step": 21, "loss": NaN, "margin": Infinity, "accuracy": null}\n')
    write_report([small], small / "report")
    report = json.loads((small / "report" / "report.json").read_text(), parse_constant=pytest.fail)
    assert report["runs"][0]["training"]["cpo"]["last"]["loss"] is None


def test_without_merged_models_there_is_no_chart_over_alpha(small):
    for folder in ("generations", "verdicts", "models"):
        for model in ("merged-0.30", "merged-0.70", "cpo"):
            shutil.rmtree(small / folder / model)
    (small / "mauve" / "scores.json").unlink()
    summary = write_report([small], small / "report")
    assert "no model trained with CPO" in summary["headline"]
    assert not list((small / "report" / "figures").glob("*alpha*"))
    assert (small / "report" / "figures" / "win-rate-greedy.svg").is_file()


def test_the_configuration_on_the_page_is_exact(run, written):
    text = re.search(
        r"resolved</summary><pre>(.*?)</pre>", (run / "report" / "index.html").read_text(encoding="utf-8"), re.DOTALL
    )[1]
    assert yaml.safe_load(text) == CONFIG
    assert "cpo-ray run config.yaml --run-dir runs/demo-again" in (run / "report" / "index.html").read_text(
        encoding="utf-8"
    )


def test_writing_the_report_again_gives_the_same_bytes(run, written):
    before = (run / "report" / "index.html").read_bytes()
    write_report([run], run / "report")
    assert (run / "report" / "index.html").read_bytes() == before
