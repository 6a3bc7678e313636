import pytest

from cpo_ray.errors import ArtifactError
from cpo_ray.submission.sweeps.outcomes import (
    Outcome,
    StageRecord,
    read_outcome,
    status_of,
    summarize_events,
    write_outcome,
)

EVENTS = [
    {"stage": "data", "message": "stage begins"},
    {"stage": "data", "artifact": "data", "how": "made"},
    {"stage": "data", "outcome": "done", "seconds": 20.0},
    {"stage": "cpo", "artifact": "trials/cpo/0.001", "how": "made"},
    {"stage": "cpo", "outcome": "TrainingError", "seconds": 500.0},
    # the second attempt
    {"stage": "data", "artifact": "data", "how": "reused"},
    {"stage": "data", "outcome": "done", "seconds": 0.1},
    {"stage": "cpo", "artifact": "trials/cpo/0.001", "how": "reused"},
    {"stage": "cpo", "artifact": "models/cpo", "how": "shared"},
    {"stage": "cpo", "outcome": "done", "seconds": 30.0},
]


def test_what_any_attempt_made_counts_as_made():
    stages = summarize_events(EVENTS)
    assert stages["data"] == StageRecord(20.0, {"data": "made"})
    assert stages["cpo"] == StageRecord(30.0, {"trials/cpo/0.001": "made", "models/cpo": "shared"})
    assert stages["cpo"].made == ["trials/cpo/0.001"]


def test_an_outcome_counts_for_its_configuration_and_last_stage_alone(make_sweep, tmp_path):
    sweep = make_sweep()
    low, high, *_ = sweep.runs
    assert read_outcome(tmp_path) is None

    def status(fingerprint, until):
        outcome = Outcome("done", fingerprint, until, "cpo-ray run", "now", {}, stages={"data": StageRecord(1.0, {})})
        write_outcome(low.root(tmp_path), outcome)
        assert read_outcome(low.root(tmp_path)) == outcome
        return status_of(low, sweep, tmp_path)

    assert status_of(low, sweep, tmp_path) == "waiting"
    assert status(low.fingerprint, None) == "done"
    assert status(high.fingerprint, None) == "waiting"
    (low.root(tmp_path) / "config.json").touch()
    assert status(low.fingerprint, "data") == "begun"


def test_a_damaged_outcome_names_the_remedy(tmp_path):
    (tmp_path / "outcome.json").write_text('{"result": "done"}')
    with pytest.raises(ArtifactError, match="Delete it, and the sweep continues that run"):
        read_outcome(tmp_path)
