import json
import subprocess
import sys
from pathlib import Path

import pytest

from cpo_ray.config.loading import parse_config
from cpo_ray.errors import RunInUseError, RunMismatchError
from cpo_ray.run_directory import open_run


def config(**sections):
    return parse_config({"name": "x", **sections}, "test")


def test_a_run_directory_says_what_and_where(tmp_path):
    with open_run(config(seed=5), tmp_path, accept_changes=False):
        assert json.loads((tmp_path / "config.json").read_text())["seed"] == 5
        environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["seed"] == 5
    assert "ray" in environment["packages"]


def test_a_run_s_paths_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open_run(config(), Path("runs/x"), accept_changes=False) as run:
        assert run.root == tmp_path / "runs" / "x"


def test_another_configuration_is_refused_field_by_field(tmp_path):
    with open_run(config(), tmp_path, accept_changes=False):
        pass
    changed = config(seed=18, objective={"beta": 2.0})
    with (
        pytest.raises(RunMismatchError, match=r"objective\.beta +5\.0 -> 2\.0\n +seed +17 -> 18\n"),
        open_run(changed, tmp_path, accept_changes=False),
    ):
        pass
    with open_run(changed, tmp_path, accept_changes=True) as run:
        assert run.config.seed == 18


def test_how_and_where_may_change_freely(tmp_path):
    with open_run(config(), tmp_path, accept_changes=False):
        pass
    faster = config(cluster={"local_cpus": 4}, judge={"concurrency": 2}, training={"checkpoint_every": 7})
    with open_run(faster, tmp_path, accept_changes=False) as run:
        assert run.config.cluster.local_cpus == 4


def test_a_run_in_use_is_refused_naming_its_owner(tmp_path):
    hold = (
        "import pathlib, sys, cpo_ray.artifacts as artifacts\n"
        f"with artifacts.lock_run(pathlib.Path({str(tmp_path)!r})): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with (
        pytest.raises(RunInUseError, match=f"in use by pid {holder.pid} of "),
        open_run(config(), tmp_path, accept_changes=False),
    ):
        pass
    holder.kill()
    holder.wait()
    with open_run(config(), tmp_path, accept_changes=False) as run:
        assert run.root == tmp_path


def test_made_reused_and_made_again(tmp_path, capsys):
    def build(out):
        (out / "file.txt").write_text("content")
        return {"rows": 1200}

    with open_run(config(), tmp_path, accept_changes=False) as run:
        assert not run.is_current("thing", {"a": 1})
        run.make("thing", {"a": 1}, build)
        assert run.is_current("thing", {"a": 1})
        run.make("thing", {"a": 1}, build)
        run.make("thing", {"a": 2, "b": {"c": 3}}, build)
    lines = capsys.readouterr().out.splitlines()
    assert "made thing in 0 s: rows 1,200" in lines[0]
    assert "reused thing: same inputs" in lines[1]
    assert "made thing again: a, b.c changed" in lines[2]
