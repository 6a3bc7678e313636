"""The whole pipeline on real parts, killed in the middle of its stages and run again."""

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cpo_ray.artifacts import read_jsonl, read_table
from cpo_ray.pipeline import STAGES
from tests.listeners import beyond_loopback, listeners

pytestmark = pytest.mark.e2e

CONFIG = Path(__file__).parent / "tiny.yaml"
KILLED_IN = ("sampling", "cpo", "generation")
SLOW_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")  # look for their raylet about once a minute, and then go


class Driver:
    """`cpo-ray run` as a user starts it."""

    def __init__(self, root, *options):
        command = [Path(sys.executable).with_name("cpo-ray"), "run", CONFIG, "--run-dir", root.name, *options]
        self.process = subprocess.Popen(
            command, cwd=root.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines = []

    def read_until(self, stage):
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith(f"{stage}: "):
                return
        raise AssertionError(f"never reached {stage}:\n{''.join(self.lines)}")

    def kill(self):
        """SIGKILL, and wait until what it had started is gone too; returns what is not."""
        started = psutil.Process(self.process.pid).children(recursive=True)
        children = [child for child in started if child.name() not in SLOW_AGENTS]
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        _, alive = psutil.wait_procs(children, timeout=60)
        return alive

    def finish(self):
        rest, _ = self.process.communicate(timeout=900)
        return "".join(self.lines) + rest


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was killed three times, its last output, what each kill left alive, and who listened where."""
    root = tmp_path_factory.mktemp("killed") / "run"
    survivors, listening = [], set()
    for stage in KILLED_IN:
        driver = Driver(root)
        with listeners(driver.process.pid) as seen:
            driver.read_until(stage)
            time.sleep(12)  # long enough for actors, workers and engines to be up and at work
            survivors += driver.kill()
        listening |= seen
    last = Driver(root)
    with listeners(last.process.pid) as seen:
        output = last.finish()
    assert last.process.returncode == 0, output
    return root, output, survivors, listening | seen


def test_a_killed_run_finishes_and_finished_stages_are_not_redone(run):
    root, output, *_ = run
    for name in ("data", "models/reference", "groups/train", "models/cpo", "models/mle", "models/merged-0.50"):
        assert f"reused {name}: same inputs" in output
    assert "made generations/cpo" in output
    assert str(root / "report" / "index.html") in output


def test_a_killed_driver_takes_its_processes_along(run):
    assert run[2] == []


def test_nothing_listened_beyond_loopback(run):
    """Neither in sampling nor in training nor in serving."""
    listening = run[3]
    names = {name for name, _ in listening}
    for part in ("RayTrainWorker", "MapWorker", "VLLM", "ServeReplica"):
        assert any(part in name for name in names), (part, names)
    assert beyond_loopback(listening) == set()


def test_every_stage_left_a_manifest(run):
    root, *_ = run
    made = {pattern for stage in STAGES.values() for pattern in stage.writes}
    for pattern in made - {"reward"}:  # this run names no reward model
        places = list(root.glob(pattern))
        assert places, pattern
        for folder in filter(Path.is_dir, places):  # a model card is a file
            manifest = json.loads((folder / "manifest.json").read_text())
            assert all((folder / name).stat().st_size == entry["bytes"] for name, entry in manifest["files"].items())
    assert not list(root.glob("**/.*.partial"))


def test_groups_are_whole_and_in_order(run):
    root, *_ = run
    groups = read_table(root / "groups" / "train")
    examples = read_table(root / "data" / "train")
    assert groups["id"].to_pylist() == examples["id"].to_pylist()[:64]
    assert {tuple(kinds) for kinds in groups["candidate_kind"].to_pylist()} == {
        ("gold", "autoregressive", "batch", "meanfield", "truncation")
    }


def test_curves_start_at_log_k_factorial_and_have_every_step(run):
    root, *_ = run
    rows = {(row["stage"], row["step"]): row for row in read_jsonl(root / "metrics.jsonl")}
    assert [step for stage, step in sorted(rows) if stage == "cpo"] == [1, 2, 3, 4, 5, 6]
    assert rows["cpo", 1]["loss"] == pytest.approx(rows["cpo", 1]["expected_loss"], abs=1e-3)
    assert rows["cpo", 1]["expected_loss"] <= math.lgamma(6)


def test_a_finished_run_starts_no_engine(run):
    root, *_ = run
    driver = Driver(root)
    output = driver.finish()
    assert driver.process.returncode == 0
    assert "  made " not in output
    assert "engines" not in output


@pytest.mark.chaos
def test_one_engine_for_all_models_answers_as_an_engine_for_each(run, tmp_path):
    root, *_ = run
    again = shutil.copytree(root, tmp_path / "run", ignore=shutil.ignore_patterns("generations", "checkpoints", "logs"))
    driver = Driver(again, "--from", "generation", "--until", "generation", "--set", "serving.in_place=false")
    output = driver.finish()
    assert driver.process.returncode == 0, output
    assert "LLMServer:shared" in (root / "logs" / "generation.log").read_text()
    assert "LLMServer:shared" not in (again / "logs" / "generation.log").read_text()
    answers = {}
    for model in ("mle", "cpo"):
        assert f"made generations/{model}" in output
        answers[model], apart = (read_jsonl(place / "generations" / model / "greedy.jsonl") for place in (root, again))
        assert len(apart) == 24
        for shared, own in zip(answers[model], apart, strict=True):
            assert shared == own
    assert answers["mle"] != answers["cpo"], "or the weights need not have changed"


@pytest.mark.chaos
def test_negatives_sampled_while_cpo_trains_outlast_a_killed_driver(run, tmp_path):
    """From the same reference. The policy that negatives are sampled from changes every second step."""
    root, *_ = run
    left = shutil.ignore_patterns("groups", "checkpoints", "cpo", "mle", "merged-*", "generations", "verdicts")
    again = shutil.copytree(root, tmp_path / "run", ignore=left)
    online = ["sampling.stream=true", "sampling.refresh_steps=2", "sampling.negatives.autoregressive=0"]
    options = ["--until", "cpo", "--accept-changes", *(word for setting in online for word in ("--set", setting))]
    driver = Driver(again, *options)
    driver.read_until("cpo")
    while not list(again.glob("checkpoints/cpo-*/checkpoint_*")):
        assert driver.process.poll() is None
        time.sleep(0.1)
    assert driver.kill() == []
    driver = Driver(again, *options)
    output = driver.finish()
    assert driver.process.returncode == 0, output
    assert "reused models/reference" in output
    steps = {row["step"]: row for row in read_jsonl(again / "metrics.jsonl") if row["stage"] == "cpo"}
    assert [(step, row["sampled_from_step"]) for step, row in sorted(steps.items())] == [
        (1, 0), (2, 0), (3, 0), (4, 0), (5, 2), (6, 2),
    ]  # fmt: skip
    assert all(0 <= row["data_seconds"] <= row["seconds"] for row in steps.values())
    assert len(read_table(again / "groups" / "train")) == 6 * 16
    assert set(json.loads((again / "groups" / "train" / "stats.json").read_text())) == {
        "gold", "batch", "meanfield", "truncation",
    }  # fmt: skip
    assert not list(again.glob("groups/.stream-*"))
