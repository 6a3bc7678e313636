import ast
import re
from pathlib import Path

import pytest

from cpo_ray import __version__, cli
from cpo_ray.pipeline import STAGES
from tests.commands.command_line import invoke

ROOT = Path(__file__).parent.parent


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Call `run_job` as jobs/<name>.py does, with a configuration file; returns the arguments of the pipeline's calls."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text("name: x\n")
    calls = []

    def record(config, root, **options):
        calls.append({"config": config, "root": root} | options)

    def start(name, *command):
        monkeypatch.setattr(cli.sys, "argv", [f"jobs/{name}.py", "x.yaml"])
        with pytest.raises(SystemExit) as ended:
            cli.run_job(*command)
        assert ended.value.code == 0
        return calls

    monkeypatch.setattr("cpo_ray.commands.run.run_pipeline", record)
    return start


def test_every_stage_is_in_one_job_and_one_job_is_all():
    names, found = list(STAGES), []
    for path in (ROOT / "jobs").glob("*.py"):
        (call,) = re.findall(r"run_job\((.*)\)", path.read_text())
        command, *options = ast.literal_eval(f"[{call}]")
        if command in STAGES:
            found.append(command)
        elif options:
            first, last = options[1::2]
            found += names[names.index(first) : names.index(last) + 1]
        elif command == "run":
            assert path.stem == "pipeline"
    assert sorted(found) == sorted(names)


def test_a_job_may_be_a_part_of_the_pipeline(job):
    (call,) = job("train", "run", "--from", "cpo", "--until", "mle")
    assert (call["first"], call["last"]) == ("cpo", "mle")


def test_a_job_without_storage_of_its_own_prints_a_warning(job, monkeypatch, capsys):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    for variable, warned in ((None, True), ("somewhere", False)):
        if variable:
            monkeypatch.setenv("CPO_RAY_RUNS", variable)
        else:
            monkeypatch.delenv("CPO_RAY_RUNS", raising=False)
        calls = job("data", "data")
        assert ("give --run-dir, or set CPO_RAY_RUNS" in capsys.readouterr().out) == warned
    assert [call["root"] for call in calls] == [Path("runs/x"), Path("somewhere/x")]


@pytest.mark.parametrize("address", [None, "10.0.0.1:6379"])
def test_a_job_joins_the_cluster_that_runs_it(job, monkeypatch, address):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    (call,) = job("data", "data")
    assert call["config"].cluster.address == ("auto" if address else None)


def test_the_help_explains_the_method_and_the_first_command():
    text = " ".join(invoke("--help").stdout.split())
    for word in (
        "prompt",
        "negatives",
        "reference",
        "Contrastive Preference Optimization",
        "cpo-ray run configs/demo.yaml",
    ):
        assert word in text
    assert ", ".join(STAGES) in text


def test_the_version():
    assert invoke("--version").stdout == f"cpo-ray {__version__}\n"
