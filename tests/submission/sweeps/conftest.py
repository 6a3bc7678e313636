import sys
from pathlib import Path
from textwrap import dedent

import pytest
import yaml

from cpo_ray.submission.sweeps.grid import load_sweep

# Stands for `cpo-ray run CONFIG --run-dir DIR`: one stage. beta 3 fails, and beta 4 waits until it is asked to stop.
PROGRAM = """
import json, pathlib, sys, time
import yaml
config = yaml.safe_load(pathlib.Path(sys.argv[2]).read_text())
root = pathlib.Path(sys.argv[4])
(root / "config.json").write_text(json.dumps(config))
with (root / "starts").open("a") as starts:
    starts.write("x")
beta = config["objective"]["beta"]
if beta == 3:
    sys.exit("the reference does not match")
if beta == 4:
    time.sleep(600)
with (root / "logs" / "events.jsonl").open("a") as events:
    events.write(json.dumps({"stage": "data", "artifact": "data", "how": "made" if beta == 1 else "shared"}) + "\\n")
    events.write(json.dumps({"stage": "data", "outcome": "done", "seconds": 2.5}) + "\\n")
"""


@pytest.fixture
def program(tmp_path):
    """The command line of a run that takes no time."""
    file = tmp_path / "program.py"
    file.write_text(dedent(PROGRAM))
    return sys.executable, str(file)


@pytest.fixture
def write_sweep(tmp_path):
    """Write a sweep's file, with its base, and return its path. Keys replace those of a sweep over beta."""

    def write(**keys) -> Path:
        (tmp_path / "base.yaml").write_text("name: base\nseed: 9\nobjective: {ranked: false}\n")
        tree = {
            "name": "betas",
            "base": "base.yaml",
            "seeds": [1, 2],
            "arms": {"low": {"objective.beta": 1.0}, "high": {"objective.beta": 5.0}},
        } | keys
        file = tmp_path / "sweep.yaml"
        file.write_text(yaml.safe_dump(tree, sort_keys=False))
        return file

    return write


@pytest.fixture
def make_sweep(write_sweep):
    """Like `write_sweep`, loaded."""
    return lambda **keys: load_sweep(write_sweep(**keys))
