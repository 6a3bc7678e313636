"""The report says whether CPO and MLE had the same prompts, steps and tuning budget, and where they had not."""

import json

import pytest

from cpo_ray.artifacts import Manifest
from cpo_ray.report.fairness import compare_trainings
from cpo_ray.report.model_card import render_card
from cpo_ray.report.run_contents import read_run
from cpo_ray.report.write import write_report
from tests.report.fake_run import make_fake_run

STEPS = {"steps": 100, "prompts_per_step": 64, "learning_rate": 3e-5}
FILES = {
    "part-00000.parquet": {"sha256": "2" * 64, "bytes": 9, "rows": 2000},
    "selected/part-00000.parquet": {"sha256": "1" * 64, "bytes": 9, "rows": 2000},
}


@pytest.fixture
def root(tmp_path):
    make_fake_run(tmp_path / "run", rows=30, steps=12, decodings=("greedy",))
    return tmp_path / "run"


def edit(root, name, **changes):
    path = root / name / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return Manifest(**json.loads(path.read_text()))


def record(root, *, cpo=STEPS, mle=STEPS, trials=None, streamed=False, older=False, kept=(3e-5, 1e-4)):
    """Write what the two models were made from into their manifests, as the stages do."""
    reads = {"data": "d"} if streamed else {}
    inputs = {"config": {"seed": 17, "training": cpo}, "reads": reads}
    groups = edit(root, "groups/train", files=FILES, inputs=inputs if streamed else {"reads": {}})
    data = Manifest(**json.loads((root / "data" / "manifest.json").read_text()))
    if streamed:
        inputs["reads"] = {"data": data.fingerprint}
        groups = edit(root, "groups/train", files=FILES, inputs=inputs)
    else:
        inputs["reads"] = {"groups/train": groups.fingerprint}
    of_mle = {"groups/train/selected": groups.part_fingerprint("selected")}
    of_mle = {"data": data.fingerprint} if older else of_mle
    summaries = [{} if trials is None else {"learning_rate": rate, "trials": trials} for rate in kept]
    edit(root, "models/cpo", inputs=inputs, summary=summaries[0])
    edit(root, "models/mle", inputs={"config": {"seed": 17, "training": mle}, "reads": of_mle}, summary=summaries[1])


def sentence(root):
    return compare_trainings(read_run(root))["sentence"]


@pytest.mark.parametrize("streamed", [False, True])
def test_equal_trainings_are_described_in_one_sentence(root, streamed):
    record(root, streamed=streamed)
    assert sentence(root) == (
        "CPO and MLE were trained alike: on the same 2,000 prompts in the same order, for 100 steps of 64 prompts, and with "
        "one learning rate each, without tuning: 3e-05 for CPO, 3e-05 for MLE."
    )


def test_learning_rates_that_were_tried_are_listed(root):
    trials = [
        {"learning_rate": rate, "validation_loss": loss} for rate, loss in ((1e-5, 2.5), (3e-5, 2.25), (1e-4, 2.75))
    ]
    record(root, trials=trials)
    assert sentence(root).endswith(
        "for 100 steps of 64 prompts, and with the same tuning budget (learning rates tried by each: 1e-05, 3e-05, 0.0001; "
        "kept: 3e-05 for CPO, 0.0001 for MLE)."
    )
    write_report([root], root / "report")
    page = (root / "report" / "index.html").read_text(encoding="utf-8")
    assert sentence(root) in page
    assert "Learning rates tried" in page
    assert "<b>2.2500</b>" in page
    facts = json.loads((root / "report" / "report.json").read_text())["runs"][0]["comparison"]
    assert facts == {"alike": True, "sentence": sentence(root), "trials": {"cpo": trials, "mle": trials}}
    card = render_card(read_run(root), "mle", [])
    assert "AdamW at 0.0001" in card
    assert sentence(root) in card
    assert "- CPO: 300 steps of 64 prompts, AdamW at 3e-05" in render_card(read_run(root), "merged-0.30", [])


def test_an_older_run_is_said_to_differ_in_its_prompts(root):
    record(root, older=True)
    assert sentence(root) == (
        "CPO and MLE were not trained alike: CPO drew its batches from 2,000 prompts, MLE from 3,000, so their batches differ. "
        "So the difference between them is not that of their losses alone."
    )
    write_report([root], root / "report")
    assert "were not trained alike" in (root / "report" / "index.html").read_text(encoding="utf-8")


def test_other_steps_and_other_rates_are_differences(root):
    record(root, mle=STEPS | {"steps": 200})
    assert "not trained alike: CPO took 100 steps of 64 prompts, MLE 200 of 64." in sentence(root)
    record(root)
    trials = [{"learning_rate": 1e-5, "validation_loss": 2.5}, {"learning_rate": 3e-5, "validation_loss": 2.0}]
    edit(root, "models/mle", summary={"learning_rate": 3e-5, "trials": trials})
    assert "not trained alike: learning rates tried: 3e-05 for CPO, 1e-05, 3e-05 for MLE." in sentence(root)


def test_what_the_manifests_do_not_say_is_not_claimed(root):
    found = compare_trainings(read_run(root))
    assert found["alike"] is None
    assert "do not say whether CPO and MLE had the same prompts" in found["sentence"]
    (root / "models" / "mle" / "manifest.json").unlink()
    assert compare_trainings(read_run(root)) is None
