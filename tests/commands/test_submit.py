"""The command, with the cluster replaced by answers."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cpo_ray import cli
from cpo_ray.errors import ClusterError
from cpo_ray.submission import jobs
from cpo_ray.submission.jobs import Outcome

TINY = Path(__file__).parents[1] / "tiny.yaml"


@pytest.fixture
def cluster(monkeypatch):
    """What was asked of it, and what it will answer."""
    asked = {"outcome": Outcome("tiny-1", 0, ""), "new": True}

    def send(client, config, command, include, run_dir):
        asked.update(command=command, config=config, run_dir=run_dir)
        return "tiny-1", asked["new"]

    def follow(client, job, write):
        write("the job's words\n")
        if isinstance(asked["outcome"], BaseException):
            raise asked["outcome"]
        return asked["outcome"]

    monkeypatch.setattr(jobs, "connect", lambda address: asked.setdefault("address", address))
    monkeypatch.setattr(jobs, "send", send)
    monkeypatch.setattr(jobs, "follow", follow)
    monkeypatch.setattr(jobs, "fetch_report", lambda client, job, config, run_dir, to: asked.update(report=to))
    return asked


def submit(*words):
    return CliRunner().invoke(cli.app, ["submit", str(TINY), *words])


def test_the_report_comes_home(cluster, tmp_path):
    seen = submit("--address", "http://there:1", "--set", "seed=3", "--reports", str(tmp_path))
    assert seen.exit_code == 0, seen.output
    assert "tiny-1 submitted" in seen.stdout
    assert "the job's words" in seen.stdout
    assert str(tmp_path / "tiny" / "index.html") in seen.stdout.replace("\n", "")
    assert cluster["report"] == tmp_path / "tiny"
    assert cluster["config"].seed == 3
    assert cluster["command"] == "python jobs/pipeline.py tiny.yaml"
    assert cluster["address"] == "http://there:1"


def test_a_part_of_the_pipeline_has_no_report(cluster):
    cluster["new"] = False
    seen = submit("--until", "cpo", "--run-dir", "/mnt/runs/x")
    assert seen.exit_code == 0
    assert "is running already: following it" in seen.stdout
    assert "report" not in cluster
    assert cluster["command"].endswith("--run-dir /mnt/runs/x --until cpo")
    assert cluster["run_dir"] == "/mnt/runs/x"


def test_a_failure_is_told_with_its_code(cluster):
    cluster["outcome"] = Outcome("tiny-1", 2, "the [last] words")
    seen = submit()
    assert seen.exit_code == 2
    assert "tiny-1 ended with 2: the [last] words" in seen.stdout
    assert "report" not in cluster


def test_ctrl_c_leaves_the_job_running(cluster):
    cluster["outcome"] = KeyboardInterrupt()
    seen = submit()
    assert seen.exit_code == 130
    assert "goes on. The same command follows it; `ray job stop tiny-1` ends it" in seen.stdout


def test_what_the_cluster_refuses_is_one_paragraph(cluster):
    cluster["outcome"] = ClusterError("the cluster cannot be reached for 600 s")
    seen = submit()
    assert (seen.exit_code, seen.stderr) == (1, "the cluster cannot be reached for 600 s\n")
    assert submit("--set", "objective.beta=-1").exit_code == 2


def test_stages_that_are_not_there_are_refused_before_anything_is_sent(cluster):
    seen = submit("--until", "cpoo")
    assert seen.exit_code == 2
    assert "did you mean cpo" in seen.stderr
    assert "command" not in cluster
