"""The whole pipeline with the real engines, killed in the middle of its stages and restarted."""

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
from cpo_ray.config.loading import load_config
from cpo_ray.stages import expected_artifacts
from tests.listeners import beyond_loopback, listeners

pytestmark = pytest.mark.e2e

CONFIG = Path(__file__).parent / "tiny.yaml"
KILLED_IN = ("sampling", "cpo", "generation")
SLOW_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")  # check for their raylet about once a minute, then exit


class Driver:
    """A process `cpo-ray run`, started the way a user does."""

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
        raise AssertionError(f"the run ended before stage {stage}:\n{''.join(self.lines)}")

    def kill(self):
        """Send SIGKILL and wait until the child processes are gone too. Returns those that are still alive."""
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
    """A run that was killed three times, its last output, the processes each kill left alive, and all listening sockets."""
    root = tmp_path_factory.mktemp("killed") / "run"
    survivors, listening = [], set()
    for stage in KILLED_IN:
        driver = Driver(root)
        with listeners(driver.process.pid) as seen:
            driver.read_until(stage)
            time.sleep(12)  # long enough for actors, workers and engines to start and work
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


def test_a_killed_driver_leaves_no_processes(run):
    assert run[2] == []


def test_nothing_listened_beyond_loopback(run):
    """Neither sampling nor training nor serving opens a port on another address."""
    listening = run[3]
    names = {name for name, _ in listening}
    for part in ("RayTrainWorker", "MapWorker", "VLLM", "ServeReplica"):
        assert any(part in name for name in names), (part, names)
    assert beyond_loopback(listening) == set()


def test_every_stage_wrote_a_manifest(run):
    root, *_ = run
    for name in expected_artifacts(load_config(CONFIG)):
        manifest = json.loads((root / name / "manifest.json").read_text())
        assert all((root / name / file).stat().st_size == entry["bytes"] for file, entry in manifest["files"].items())
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


def test_texts_are_measured_under_every_decoding_and_a_rule_against_repetition_holds(run):
    root, *_ = run
    scores = json.loads((root / "text_metrics" / "cpo" / "scores.json").read_text())
    assert list(scores) == ["greedy", "no_repeat"]
    for found in scores.values():
        assert found["rows"] == 24
        assert {"rep_4", "self_bleu", "similarity", "energy_distance", "reference_logp"} <= found["metrics"].keys()
    greedy, ruled = (scores[name]["metrics"]["rep_4"]["answers"]["value"] for name in ("greedy", "no_repeat"))
    assert ruled < greedy
    logps = scores["greedy"]["metrics"]["reference_logp"]
    answers, truth, difference = (logps[side]["value"] for side in ("answers", "truth", "to_truth"))
    assert max(answers, truth) < 0
    assert difference == pytest.approx(answers - truth)


def test_a_finished_run_starts_no_engine(run):
    root, *_ = run
    driver = Driver(root)
    output = driver.finish()
    assert driver.process.returncode == 0
    assert "  made " not in output
    assert "engines" not in output


@pytest.mark.chaos
def test_one_shared_engine_gives_the_same_answers_as_one_engine_per_model(run, tmp_path):
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
        answers[model], separate = (read_jsonl(base / "generations" / model / "greedy.jsonl") for base in (root, again))
        assert len(separate) == 24
        for shared, own in zip(answers[model], separate, strict=True):
            assert shared == own
    assert answers["mle"] != answers["cpo"], "equal answers would not show that the weights were switched"


@pytest.mark.chaos
def test_streamed_sampling_resumes_after_the_driver_is_killed(run, tmp_path):
    """With the same reference. The policy from which negatives are sampled changes every second step."""
    root, *_ = run
    omitted = shutil.ignore_patterns("groups", "checkpoints", "cpo", "mle", "merged-*", "generations", "verdicts")
    again = shutil.copytree(root, tmp_path / "run", ignore=omitted)
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
