from pathlib import Path

import pytest

from tests.commands.command_line import invoke
from tests.report.fake_run import make_fake_run


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def reported(monkeypatch, folder):
    """The arguments of each call of `report_runs`, which writes nothing; there are two run directories."""
    calls = []
    monkeypatch.setattr("cpo_ray.commands.report.report_runs", lambda roots, out, as_json: calls.append((roots, out)))
    for name in ("one", "two"):
        (folder / "runs" / name).mkdir(parents=True)
    return calls


def test_report_takes_run_directories(config, pipeline_calls, reported):
    assert invoke("report", "runs/one").exit_code == 0
    assert invoke("report", "runs/one", "runs/two/").exit_code == 0
    assert invoke("report", "runs/one", "runs/two", "--out", "elsewhere").exit_code == 0
    assert reported == [
        ([Path("runs/one")], None),
        ([Path("runs/one"), Path("runs/two")], None),
        ([Path("runs/one"), Path("runs/two")], Path("elsewhere")),
    ]
    assert pipeline_calls == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["x.yaml", "runs/one"],
            "x.yaml is not a run directory: report takes one configuration file, or run directories only",
        ),
        (["x.yaml", "x.yaml"], "report takes one configuration file"),
        (["runs/one", "--set", "seed=3"], "need a configuration file"),
        (["runs/one", "--run-dir", "runs/two"], "need a configuration file"),
        (["x.yaml", "--out", "elsewhere"], "--out needs run directories"),
        (["runs/nowhere"], "no configuration file runs/nowhere"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(config, pipeline_calls, reported, words, message):
    result = invoke("report", *words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert pipeline_calls == reported == []


def test_two_runs_are_reported_and_stay_unchanged(folder):
    for name in ("one", "two"):
        make_fake_run(folder / "runs" / name, rows=20, steps=5, decodings=("greedy",), name=name)
    before = {path: path.read_bytes() for path in (folder / "runs").rglob("*") if path.is_file()}
    result = invoke("report", "runs/one", "runs/two/")
    assert result.exit_code == 0, result.output
    assert "two: cpo" in result.output
    assert "reports/one-vs-two/index.html" in result.output
    assert (folder / "reports" / "one-vs-two" / "report.json").is_file()
    assert {path: path.read_bytes() for path in (folder / "runs").rglob("*") if path.is_file()} == before


def test_one_run_needs_no_configuration_file(folder):
    make_fake_run(folder / "one", rows=20, steps=5, decodings=("greedy",))
    assert invoke("report", "one", "--out", "elsewhere").exit_code == 0
    assert (folder / "elsewhere" / "cards" / "cpo" / "README.md").is_file()


@pytest.mark.parametrize("out", ["run", "run/report"])
def test_a_report_is_never_written_into_a_run(folder, out):
    (folder / "run").mkdir()
    result = invoke("report", "run", "--out", out)
    assert result.exit_code == 2
    assert "is inside the run run" in result.stderr
    assert list((folder / "run").iterdir()) == []


def test_a_damaged_run_is_reported_without_a_traceback(folder):
    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text("{")
    result = invoke("report", "run")
    assert result.exit_code == 1
    assert "config.json is not JSON" in result.stderr
