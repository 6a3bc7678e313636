"""A whole run as a job on two nodes, whose head is lost during the run, compared with the same run on this machine."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.ray_nodes import ROOT, two_nodes

pytestmark = pytest.mark.chaos

TINY = ROOT / "tests" / "tiny.yaml"
CLI = Path(sys.executable).with_name("cpo-ray")
# An engine's answer may depend on its batch: no sampled negatives, one question at a time.
UNBATCHED = ["--set", "sampling.negatives.autoregressive=0", "--set", "generation.concurrency=1"]
LOST_IN = "mle"
# Keys that differ between machines: times, speeds and places.
IGNORED = (
    "seconds",
    "data_seconds",
    "created",
    "finished",
    "tokens_per_second",
    "memory_gib",
    "environment",
    "config",
    "label",
    "run",
    "time",
    "histogram",  # a similarity may round into the next bin
)


@pytest.fixture(scope="module")
def folder():
    """A short path, because Ray's sockets are in it."""
    path = Path(tempfile.mkdtemp(prefix="sub"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def local(folder):
    command = [CLI, "run", TINY, "--run-dir", folder / "local", *UNBATCHED]
    seen = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)
    assert seen.returncode == 0, seen.stdout + seen.stderr
    return json.loads((folder / "local" / "report" / "report.json").read_text())


@pytest.fixture(scope="module")
def submitted(folder):
    """The output of the second job, and the report that was fetched."""
    root = folder / "cluster"
    with cluster(folder / "1") as nodes, submit(nodes, root, folder) as job:
        assert any(line.startswith(f"{LOST_IN}: ") for line in job.stdout)
        assert any(line.startswith(f"  {LOST_IN}: ") for line in job.stdout)  # the stage is running
        job.kill()
    with cluster(folder / "2") as nodes, submit(nodes, root, folder) as job:
        output, _ = job.communicate()
        assert job.returncode == 0, output
    return output, json.loads((folder / "reports" / "tiny" / "report.json").read_text())


def cluster(place):
    place.mkdir()
    return two_nodes(place)


def submit(nodes, root, folder):
    command = [
        CLI,
        "submit",
        TINY,
        "--address",
        nodes.dashboard,
        "--run-dir",
        root,
        "--reports",
        folder / "reports",
        *UNBATCHED,
    ]
    return subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        env=nodes.environment | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def numbers(value, path=""):
    """Every number of the report except times, speeds and places."""
    if isinstance(value, dict):
        return {
            k: v for key, item in value.items() if key not in IGNORED for k, v in numbers(item, f"{path}.{key}").items()
        }
    if isinstance(value, list):
        return {k: v for i, item in enumerate(value) for k, v in numbers(item, f"{path}.{i}").items()}
    return {path: value} if isinstance(value, int | float) else {}


def test_a_lost_head_only_costs_the_running_stage(submitted):
    output, _ = submitted
    for name in ("data", "models/reference", "groups/train", "models/cpo"):
        assert f"reused {name}: same inputs" in output
    assert f"made models/{LOST_IN}" in output


def test_the_report_has_the_numbers_of_a_local_run(submitted, local):
    remote, here = numbers(submitted[1]), numbers(local)
    assert remote.keys() == here.keys()
    assert sum(".table." in name for name in here) > 10
    assert remote == pytest.approx(here, rel=1e-4, abs=1e-6, nan_ok=True)
