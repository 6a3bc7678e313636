"""Iterated CPO in the report: the table of rounds, one curve of all, and what is left out."""

import json

import pytest

from cpo_ray.report.fairness import compare_trainings
from cpo_ray.report.model_card import render_card
from cpo_ray.report.run_contents import read_run
from cpo_ray.report.write import write_report
from tests.report.fake_run import MODELS, make_fake_run

REASON = "round 2 raised the gold's negative log-likelihood too much: it is discarded"
SETTINGS = {"steps": 10, "prompts_per_step": 64, "learning_rate": 3e-5}


def figures(number, *, kept=True):
    return {
        "round": number, "steps": 10, "loss": 2.5 - number / 10, "accuracy": 0.5, "gold_drift": -0.25,
        "first_drift": -0.25 * number, "validation_loss": 2.5, "nll": 4.0 + number / 10, "nll_increase": number / 10,
        "kept": kept,
    }  # fmt: skip


@pytest.fixture
def root(tmp_path):
    """A run of three rounds: the second is discarded, the third skipped. An older third one is still there."""
    root = tmp_path / "run"
    models = [*MODELS, "cpo-1", "cpo-2", "cpo-3"]
    stop = {"max_nll_increase": 0.15}
    make_fake_run(root, rows=30, steps=12, decodings=("greedy",), models=MODELS, rounds=3, rounds_stop=stop)
    for model in models[len(MODELS) :]:
        (root / "models" / model).mkdir()
        write_manifest(root, f"models/{model}", summary={"steps": 10})
    taken = {"kept": 1, "stopped": REASON, "reference_nll": 4.0, "rounds": [figures(1), figures(2, kept=False)]}
    write_manifest(root, "models/cpo", summary={"steps": 10} | taken)
    write_manifest(
        root, "models/mle", inputs={"config": {"seed": 17, "training": SETTINGS}, "also": {"steps": 10}, "reads": {}}
    )
    rows = [row for row in map(json.loads, (root / "metrics.jsonl").open()) if row["stage"] != "cpo"]
    for number in (1, 2, 3):
        rows += [{"stage": f"cpo-{number}", "step": step, "loss": number + step / 100} for step in (1, 2)]
        rows.append({"stage": f"cpo-{number}", "step": 2, "validation": {"loss": 10.0 * number}})
    (root / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def write_manifest(root, name, **changes):
    path = root / name / "manifest.json"
    before = json.loads((root / "models" / "cpo" / "manifest.json").read_text())
    if path.is_file():
        before = json.loads(path.read_text())
    before["inputs"] = {"config": {"seed": 17, "training": SETTINGS}, "reads": {}}
    path.write_text(json.dumps(before | changes))


def keep_both(root):
    rounds = [figures(1), figures(2)]
    write_manifest(
        root, "models/cpo", summary={"steps": 20, "kept": 2, "stopped": None, "reference_nll": 4.0, "rounds": rounds}
    )
    write_manifest(
        root, "models/mle", inputs={"config": {"seed": 17, "training": SETTINGS}, "also": {"steps": 20}, "reads": {}}
    )


def test_the_page_has_a_table_of_rounds_and_says_why_they_ended(root):
    write_report([root], root / "report")
    page = (root / "report" / "index.html").read_text(encoding="utf-8")
    assert "Rounds of CPO" in page
    for text in ("first reference", "discarded", "4.2000", "+0.2000", REASON.replace("'", "&#x27;")):
        assert text in page, text
    facts = json.loads((root / "report" / "report.json").read_text())["runs"][0]
    assert (facts["rounds"]["kept"], facts["rounds"]["reason"]) == (1, REASON)


def test_the_curve_of_cpo_is_that_of_the_kept_rounds(root):
    run = read_run(root)
    assert [row["step"] for row in run.curves["cpo"].train] == [1, 2]
    keep_both(root)
    run = read_run(root)
    assert [(row["step"], row["round"], row["loss"]) for row in run.curves["cpo"].train] == [
        (1, 1, 1.01), (2, 1, 1.02), (3, 2, 2.01), (4, 2, 2.02),
    ]  # fmt: skip
    assert [(row["step"], row["loss"]) for row in run.curves["cpo"].validation] == [(2, 10.0), (4, 20.0)]
    assert "cpo-3" not in run.curves


def test_rounds_that_the_run_no_longer_has_are_left_out(root):
    run = read_run(root)
    assert {name for name in run.manifests if name.startswith("models/cpo")} == {
        "models/cpo", "models/cpo-1", "models/cpo-2",
    }  # fmt: skip
    config = json.loads((root / "config.json").read_text())
    (root / "config.json").write_text(json.dumps(config | {"rounds": 1}))
    run = read_run(root)
    assert {name for name in run.manifests if name.startswith("models/cpo")} == {"models/cpo"}
    assert not any(name.startswith("cpo-") for name in run.curves)


def test_steps_of_all_kept_rounds_are_compared_with_the_baseline_s(root):
    keep_both(root)
    assert read_run(root).method("cpo") == "MixNR in 3 rounds"
    card = render_card(read_run(root), "cpo", [])
    assert "- CPO: 20 steps of 64 prompts, AdamW at 3e-05" in card
    assert "in 2 rounds, each from the policy of the one before" in card
    assert "The policy after round 1 of a CPO run" in render_card(read_run(root), "cpo-1", [])
    write_manifest(root, "models/mle", inputs={"config": {"training": SETTINGS}, "also": {"steps": 30}, "reads": {}})
    assert "CPO took 20 steps of 64 prompts, MLE 30 of 64" in compare_trainings(read_run(root))["sentence"]
