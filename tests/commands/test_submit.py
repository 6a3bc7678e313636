"""The command, with the cluster's answers replaced."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cpo_ray import cli
from cpo_ray.errors import ClusterError
from cpo_ray.submission import jobs
from cpo_ray.submission.jobs import JobResult

TINY = Path(__file__).parents[1] / "tiny.yaml"


@pytest.fixture
def cluster(monkeypatch):
    """The arguments of the calls, and the outcome that they will get."""
    calls = {"outcome": JobResult("tiny-1", 0, ""), "new": True}

    def send(client, config, command, include, run_dir):
        calls.update(command=command, config=config, run_dir=run_dir)
        return "tiny-1", calls["new"]

    def follow(client, job, write):
        write("the job's words\n")
        if isinstance(calls["outcome"], BaseException):
            raise calls["outcome"]
        return calls["outcome"]

    monkeypatch.setattr(jobs, "connect", lambda address: calls.setdefault("address", address))
    monkeypatch.setattr(jobs, "send", send)
    monkeypatch.setattr(jobs, "follow", follow)
    monkeypatch.setattr(jobs, "fetch_report", lambda client, job, config, run_dir, to: calls.update(report=to))
    return calls


def submit(*words):
    return CliRunner().invoke(cli.app, ["submit", str(TINY), *words])


def test_the_report_is_fetched(cluster, tmp_path):
    result = submit("--address", "http://there:1", "--set", "seed=3", "--reports", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "tiny-1 submitted" in result.stdout
    assert "the job's words" in result.stdout
    assert str(tmp_path / "tiny" / "index.html") in result.stdout.replace("\n", "")
    assert cluster["report"] == tmp_path / "tiny"
    assert cluster["config"].seed == 3
    assert cluster["command"] == "python jobs/pipeline.py tiny.yaml"
    assert cluster["address"] == "http://there:1"


def test_a_part_of_the_pipeline_has_no_report(cluster):
    cluster["new"] = False
    result = submit("--until", "cpo", "--run-dir", "/mnt/runs/x")
    assert result.exit_code == 0
    assert "is already running: following it" in result.stdout
    assert "report" not in cluster
    assert cluster["command"].endswith("--run-dir /mnt/runs/x --until cpo")
    assert cluster["run_dir"] == "/mnt/runs/x"


def test_a_failure_is_reported_with_its_code(cluster):
    cluster["outcome"] = JobResult("tiny-1", 2, "the [last] words")
    result = submit()
    assert result.exit_code == 2
    assert "tiny-1 ended with 2: the [last] words" in result.stdout
    assert "report" not in cluster


def test_ctrl_c_leaves_the_job_running(cluster):
    cluster["outcome"] = KeyboardInterrupt()
    result = submit()
    assert result.exit_code == 130
    assert "keeps running. The same command follows it; `ray job stop tiny-1` stops it" in result.stdout


def test_a_refusal_of_the_cluster_is_one_paragraph(cluster):
    cluster["outcome"] = ClusterError("the cluster cannot be reached for 600 s")
    result = submit()
    assert (result.exit_code, result.stderr) == (1, "the cluster cannot be reached for 600 s\n")
    assert submit("--set", "objective.beta=-1").exit_code == 2


def test_unknown_stages_are_refused_before_anything_is_sent(cluster):
    result = submit("--until", "cpoo")
    assert result.exit_code == 2
    assert "did you mean cpo" in result.stderr
    assert "command" not in cluster
