from functools import partial

import pytest

from cpo_ray.artifacts import lock_run
from cpo_ray.submission.sweeps.queue import Queue
from tests.commands.command_line import invoke
from tests.submission.sweeps.conftest import program, write_sweep

__all__ = ["program", "write_sweep"]

ARMS = {"low": {"objective.beta": 1.0}, "bad": {"objective.beta": 3.0}}


@pytest.fixture
def sweep(tmp_path, monkeypatch, program, write_sweep):
    """Call `cpo-ray sweep` on a sweep of two arms whose runs take no time; the arm `bad` fails."""
    monkeypatch.setattr("cpo_ray.commands.sweep.Queue", partial(Queue, program=program))
    monkeypatch.setenv("CPO_RAY_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words, **keys):
        return invoke("sweep", write_sweep(**({"arms": ARMS, "until": "data"} | keys)), *words)

    return call


def test_a_dry_run_lists_the_runs_and_starts_nothing(sweep, tmp_path, monkeypatch):
    planned = dict.fromkeys(["reference", "sampling", "cpo", "mle"], 180.0)
    monkeypatch.setattr("cpo_ray.commands.sweep.ArmPlanner", lambda: lambda run: planned)
    seen = sweep(
        "--dry-run", arms={"low": {}, "high": {"objective.beta": 1.0}}, until="mle", preregistration="plan.yaml"
    )
    assert seen.exit_code == 0, seen.output
    rows = [" ".join(line.split()) for line in seen.output.splitlines()]
    assert "low, seed 1 waiting data, reference, sampling, cpo, mle 12 min" in rows
    assert "high, seed 1 waiting cpo data, reference, sampling, mle 3 min" in rows
    assert "4 runs (2 arms, 2 seeds): 4 waiting" in seen.output
    assert "about 30 min to go: 30 min by `cpo-ray plan`" in seen.output  # 4 stages of 3 min, and 1; for two seeds
    assert "not included, because no run of this sweep has finished them yet: data" in seen.output
    assert "the sweep would not start: there is no preregistration" in seen.output
    assert not (tmp_path / "runs").exists()


def test_failures_are_listed_and_set_the_exit_code(sweep, tmp_path):
    seen = sweep()
    assert seen.exit_code == 1
    assert "bad, seed 1  failed  0 s   the reference does not match" in seen.output
    assert "2 of 4 runs failed: bad, seed 1; bad, seed 2." in seen.stderr
    assert "1 of 2 runs failed: bad, seed 2" in sweep("--only", "2").stderr
    assert sweep("--only", "low").exit_code == 0
    plan = sweep("--dry-run")
    assert "4 runs (2 arms, 2 seeds): 2 done, 2 failed" in plan.output
    starts = {
        run: len((tmp_path / "runs" / "betas" / run / "starts").read_text()) for run in ("low/seed-1", "bad/seed-1")
    }
    assert starts == {"low/seed-1": 1, "bad/seed-1": 1}
    assert sweep("--retry-failed", "--only", "bad,1").exit_code == 1
    assert len((tmp_path / "runs" / "betas" / "bad" / "seed-1" / "starts").read_text()) == 2


@pytest.mark.parametrize(
    ("words", "keys", "message"),
    [
        ([], {"grid": {"objective.rankd": [True]}}, "unknown key `objective.rankd`; did you mean `objective.ranked`?"),
        ([], {"until": "trainign"}, "no such stage. In order: data"),
        (["--only", "hihg"], {}, "there is no arm 'hihg'"),
        ([], {"preregistration": "plan.yaml"}, "there is no preregistration"),
    ],
)
def test_mistakes_are_refused_before_anything_starts(sweep, tmp_path, words, keys, message):
    seen = sweep(*words, **keys)
    assert seen.exit_code == 2
    assert message in " ".join(seen.stderr.split())
    assert not list((tmp_path / "runs").glob("betas/*/*"))


def test_one_sweep_at_a_time(sweep, tmp_path):
    with lock_run(tmp_path / "runs" / "betas"):
        seen = sweep()
    assert seen.exit_code == 1
    assert "is in use by pid" in seen.stderr
