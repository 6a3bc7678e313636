import os
import signal
import threading
import time

import psutil
import pytest
import yaml

from cpo_ray.artifacts import lock_run
from cpo_ray.errors import Preempted, RunMismatchError
from cpo_ray.submission.sweeps.outcomes import read_outcome, status_of
from cpo_ray.submission.sweeps.queue import Queue

FAILING = {"low": {"objective.beta": 1.0}, "bad": {"objective.beta": 3.0}, "high": {"objective.beta": 5.0}}


def statuses(sweep, root):
    return {run.label: status_of(run, sweep, root) for run in sweep.runs}


def starts(run, root):
    return len((run.root(root) / "starts").read_text())


def test_a_failed_run_is_recorded_and_the_others_go_on(make_sweep, program, tmp_path, capsys):
    sweep, root = make_sweep(arms=FAILING, seeds=[1]), tmp_path / "runs"
    Queue(sweep, root, revision=lambda: {"commit": "c0ffee"}, program=program).perform(sweep.runs)
    assert statuses(sweep, root) == {"low, seed 1": "done", "bad, seed 1": "failed", "high, seed 1": "done"}
    failed = read_outcome(root / "bad" / "seed-1")
    assert (failed.exit_code, failed.error) == (1, "the reference does not match")
    finished = read_outcome(root / "low" / "seed-1")
    assert finished.revision == {"commit": "c0ffee"}
    assert finished.stages["data"].seconds == 2.5
    assert finished.stages["data"].made == ["data"]
    printed = capsys.readouterr().out
    assert "[1/3] low, seed 1: cpo-ray run" in printed
    assert "data              2 s  made data" in printed
    assert "data              2 s  shared data" in printed
    assert "failed (exit code 1): the reference does not match" in printed


def test_finished_runs_are_skipped_and_failed_ones_on_request_tried_again(make_sweep, program, tmp_path):
    sweep, root = make_sweep(arms=FAILING, seeds=[1]), tmp_path / "runs"
    for retry in (False, False, True):
        Queue(sweep, root, retry_failed=retry, program=program).perform(sweep.runs)
    assert [starts(run, root) for run in sweep.runs] == [1, 2, 1]


def test_runs_share_one_store_unless_they_name_another(make_sweep, program, tmp_path):
    def store(**keys):
        sweep, root = make_sweep(seeds=[1], **keys), tmp_path / keys.get("name", "runs")
        Queue(sweep, root, program=program).perform(sweep.runs)
        written = [yaml.safe_load((run.root(root) / "config.yaml").read_text()) for run in sweep.runs]
        return {config["cluster"]["artifact_store"] for config in written}

    assert store() == {str(tmp_path / "runs" / "store")}
    assert store(name="elsewhere", settings={"cluster.artifact_store": "/common"}) == {"/common"}


def test_a_run_that_was_killed_is_performed_again(make_sweep, program, tmp_path):
    sweep, root = make_sweep(), tmp_path / "runs"
    Queue(sweep, root, program=program).perform(sweep.runs[:1])
    (root / "low" / "seed-1" / "outcome.json").unlink()  # a kill before the last write
    assert statuses(sweep, root)["low, seed 1"] == "begun"
    Queue(sweep, root, program=program).perform(sweep.runs)
    assert set(statuses(sweep, root).values()) == {"done"}
    assert [starts(run, root) for run in sweep.runs] == [2, 1, 1, 1]


def test_a_run_of_a_killed_sweep_is_waited_for(make_sweep, program, tmp_path, capsys):
    sweep, root = make_sweep(seeds=[1]), tmp_path / "runs"
    released = threading.Event()

    def end_it():
        with lock_run(root / "low" / "seed-1"):
            holding.set()
            released.wait()

    holding = threading.Event()
    other = threading.Thread(target=end_it)
    other.start()
    holding.wait()
    threading.Timer(0.5, released.set).start()
    Queue(sweep, root, program=program).perform(sweep.runs)
    other.join()
    assert "low, seed 1: waits" in capsys.readouterr().out
    assert set(statuses(sweep, root).values()) == {"done"}


def test_sigterm_stops_the_run_and_leaves_no_outcome(make_sweep, program, tmp_path):
    sweep, root = make_sweep(arms={"endless": {"objective.beta": 4.0}}, seeds=[1]), tmp_path / "runs"

    def stop_once_it_runs():
        while not (root / "endless" / "seed-1" / "starts").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=stop_once_it_runs).start()
    with pytest.raises(Preempted, match="the same command continues"):
        Queue(sweep, root, program=program).perform(sweep.runs)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert statuses(sweep, root) == {"endless, seed 1": "begun"}
    assert not [child for child in psutil.Process().children() if str(root) in " ".join(child.cmdline())]


def test_a_run_that_somebody_else_stops_ends_the_sweep(make_sweep, program, tmp_path):
    sweep, root = make_sweep(arms={"endless": {"objective.beta": 4.0}}, seeds=[1]), tmp_path / "runs"

    def stop_the_run():
        while not (root / "endless" / "seed-1" / "starts").exists():
            time.sleep(0.05)
        for child in psutil.Process().children():
            if str(root) in " ".join(child.cmdline()):
                child.terminate()

    threading.Thread(target=stop_the_run).start()
    with pytest.raises(Preempted, match="the run endless, seed 1 was asked to stop"):
        Queue(sweep, root, program=program).perform(sweep.runs)
    assert statuses(sweep, root) == {"endless, seed 1": "begun"}


def test_another_base_is_refused_before_any_run_starts(make_sweep, program, tmp_path):
    sweep, root = make_sweep(seeds=[1]), tmp_path / "runs"
    Queue(sweep, root, program=program).perform(sweep.runs[1:])
    changed = make_sweep(seeds=[1], settings={"objective.ranked": True})
    with pytest.raises(RunMismatchError, match=r"objective\.ranked  False -> True"):
        Queue(changed, root, program=program).perform(changed.runs)
    assert not (root / "low").exists()
    Queue(changed, root, accept_changes=True, program=program).perform(changed.runs)
    assert set(statuses(changed, root).values()) == {"done"}
