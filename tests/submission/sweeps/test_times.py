import pytest

from cpo_ray.submission.sweeps.outcomes import Outcome, StageRecord
from cpo_ray.submission.sweeps.sharing import StageTasks
from cpo_ray.submission.sweeps.times import StageEstimate, Times, format_seconds


def outcome(**stages):
    records = {name: StageRecord(seconds, {name: how}) for name, (seconds, how) in stages.items()}
    return Outcome("done", "f", None, "cpo-ray run", "now", {}, stages=records)


def plan(run):
    assert run.arm == "high"
    return {"sampling": 2700.0, "reference": 3600.0}


def test_times_are_of_the_same_arm_else_of_others_else_planned(make_sweep):
    low_1, high_1, low_2, _ = make_sweep().runs
    finished = [
        (low_1, outcome(data=(10, "made"), cpo=(30, "made"))),
        (low_2, outcome(data=(20, "made"), cpo=(50, "made"))),
        (high_1, outcome(data=(1, "shared"), cpo=(70, "made"))),
    ]
    work = [StageTasks(stage, (stage,), ()) for stage in ("data", "cpo", "sampling", "mauve")]
    work.append(StageTasks("mle", (), ("models/mle",)))
    assert Times(finished, plan).estimate(high_1, work) == [
        StageEstimate("data", 15, "other arms"),
        StageEstimate("cpo", 70, "the same arm"),
        StageEstimate("sampling", 2700, "plan"),
        StageEstimate("mauve", 0, "unknown"),
    ]


def test_without_a_plan_nothing_is_known(make_sweep):
    run = make_sweep().runs[0]
    estimates = Times([], lambda _: {}).estimate(run, [StageTasks("cpo", ("models/cpo",), ())])
    assert estimates == [StageEstimate("cpo", 0, "unknown")]


@pytest.mark.parametrize(("seconds", "text"), [(40.4, "40 s"), (720, "12 min"), (12_600, "3.5 h")])
def test_seconds_are_short(seconds, text):
    assert format_seconds(seconds) == text
