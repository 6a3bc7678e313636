"""A real sweep of one stage, killed and continued."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cpo_ray.artifacts import find_artifact

pytestmark = pytest.mark.e2e

TINY = Path(__file__).parents[2] / "tiny.yaml"


def test_a_killed_sweep_continues_and_its_runs_share_artifacts_that_outlive_each_other(tmp_path):
    arms = {"low": {"objective.beta": 1.0}, "high": {}}
    sweep = {"name": "tiny", "base": str(TINY), "seeds": [1], "until": "data", "arms": arms}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    command = [Path(sys.executable).with_name("cpo-ray"), "sweep", "sweep.yaml"]
    plan = subprocess.run([*command, "--dry-run"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "2 runs (2 arms, 1 seeds): 2 waiting" in plan.stdout
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    begun = process.stdout.readline()
    process.kill()  # the run that it has started goes on
    process.wait()
    process.stdout.close()
    assert begun.startswith("[1/2] low, seed 1: cpo-ray run")

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    low, high = (tmp_path / "runs" / "tiny" / arm / "seed-1" for arm in arms)
    outcomes = [json.loads((run / "outcome.json").read_text()) for run in (low, high)]
    assert [outcome["result"] for outcome in outcomes] == ["done", "done"]
    assert [outcome["stages"]["data"]["artifacts"] for outcome in outcomes] == [{"data": "made"}, {"data": "shared"}]
    one, other = (find_artifact(run, "data") for run in (low, high))
    assert one.fingerprint == other.fingerprint
    file = next(iter(one.manifest.files))
    assert (one.path / file).samefile(other.path / file)

    shutil.rmtree(low)
    shutil.rmtree(tmp_path / "runs" / "tiny" / "store")
    assert find_artifact(high, "data").fingerprint == one.fingerprint
    assert (other.path / file).stat().st_size == one.manifest.files[file]["bytes"]
