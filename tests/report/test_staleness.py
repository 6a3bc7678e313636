import json

import pytest

from cpo_ray.artifacts import Manifest
from cpo_ray.report.write import write_report
from tests.report.fake_run import MODELS, make_fake_run


@pytest.fixture
def small(tmp_path):
    """A run directory that a test may change."""
    make_fake_run(tmp_path / "run", rows=30, steps=20, decodings=("greedy",))
    return tmp_path / "run"


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_models_and_decodings_that_the_configuration_no_longer_has_are_left_out(tmp_path):
    root = tmp_path / "run"
    make_fake_run(root, rows=30, steps=20)
    decodings = {"greedy": {}}
    edit_json(root / "config.json", merging={"alphas": [0.7]}, generation={"models": None, "decodings": decodings})
    summary = write_report([root], tmp_path / "out")
    assert [row["label"] for row in summary["table"]] == ["reference", "mle", "cpo", "merged-0.70"]
    assert "(the best of 2 models trained with CPO)" in summary["headline"]
    assert "corrected for 3 comparisons" in summary["headline"]
    assert not (tmp_path / "out" / "cards" / "merged-0.30").exists()
    edit_json(root / "config.json", generation={"models": ["mle", "cpo"], "decodings": decodings})
    assert [row["label"] for row in write_report([root], tmp_path / "out")["table"]] == ["mle", "cpo"]
    assert (tmp_path / "out" / "cards" / "reference").exists(), "the run trains it, but does not evaluate it"


def test_a_configuration_without_models_shows_everything_in_the_directory(small):
    edit_json(small / "config.json", merging={}, generation={})
    assert [row["label"] for row in write_report([small], small / "report")["table"]] == list(MODELS)


def test_verdicts_and_scores_of_changed_answers_are_missing(small):
    edit_json(small / "generations" / "cpo" / "manifest.json", files={})
    summary = write_report([small], small / "report")
    earlier = "(made from an earlier generations/cpo)"
    assert summary["missing"] == [f"{name}/cpo {earlier}" for name in ("verdicts", "reward", "mauve", "text_metrics")]
    row = next(row for row in summary["table"] if row["model"] == "cpo")
    for name in ("win_rate", "judge", "length_controlled", "reward_rate", "mauve", "difference_to_mle", "texts"):
        assert row[name] is None, name
    assert row["mean_length"] is not None
    assert f"verdicts/cpo {earlier}" in (small / "report" / "index.html").read_text(encoding="utf-8")


def test_answers_of_a_retrained_model_and_everything_made_from_them_are_missing(small):
    edit_json(small / "models" / "cpo" / "manifest.json", files={})
    summary = write_report([small], small / "report")
    assert [line.split(" ")[0] for line in summary["missing"]] == [
        "generations/cpo", "verdicts/cpo", "reward/cpo", "mauve/cpo", "text_metrics/cpo",
    ]  # fmt: skip
    assert "cpo" not in [row["model"] for row in summary["table"]]


def test_text_metrics_of_all_models_are_stale_if_the_baseline_s_answers_have_changed(small):
    edit_json(small / "generations" / "mle" / "manifest.json", files={})
    missing = write_report([small], small / "report")["missing"]
    assert {f"text_metrics/{model} (made from an earlier generations/mle)" for model in MODELS} <= set(missing)


def test_rewards_are_left_out_if_the_run_has_no_reward_model(small):
    edit_json(small / "config.json", reward={"model": None})
    assert {row["reward_rate"] for row in write_report([small], small / "report")["table"]} == {None}


def test_staleness_follows_the_reads_of_the_manifests_whatever_the_stage(small):
    """A stage added later needs no change here: its record writes what it read into its manifest."""
    edit_json(small / "models" / "mle" / "manifest.json", inputs={"reads": {"data": "another fingerprint"}})
    edit_json(small / "models" / "merged-0.30" / "manifest.json", inputs={"reads": {"models/mle": "gone since"}})
    missing = write_report([small], small / "report")["missing"]
    assert "models/mle (made from an earlier data)" in missing
    assert "models/merged-0.30 (made from an earlier models/mle)" in missing
    assert "generations/merged-0.30 (made from an earlier models/merged-0.30)" in missing
    assert not any("models/cpo" in line for line in missing)


def test_a_model_made_from_a_part_of_an_artifact_is_stale_if_that_part_has_changed(small):
    groups = small / "groups" / "train" / "manifest.json"
    edit_json(groups, files={"selected/part-00000.parquet": {"sha256": "1" * 64, "bytes": 9, "rows": 3000}})
    part = Manifest(**json.loads(groups.read_text())).part_fingerprint("selected")
    for recorded, stale in ((part, False), ("another", True)):
        edit_json(small / "models" / "mle" / "manifest.json", inputs={"reads": {"groups/train/selected": recorded}})
        missing = write_report([small], small / "report")["missing"]
        assert ("models/mle (made from an earlier groups/train/selected)" in missing) == stale


def test_a_manifest_that_records_no_reads_is_not_stale(small):
    """Artifacts of an earlier version."""
    edit_json(small / "verdicts" / "cpo" / "manifest.json", inputs={"generations": "another fingerprint"})
    assert write_report([small], small / "report")["missing"] == []
