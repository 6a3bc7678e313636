import pytest
from typer.testing import CliRunner

from cpo_ray.cli import app
from tests.report.fake_run import make_fake_run


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def type_in(*words):
    return CliRunner().invoke(app, ["report", *words])


def test_two_runs_are_reported_and_stay_as_they_were(folder):
    for name in ("one", "two"):
        make_fake_run(folder / "runs" / name, rows=20, steps=5, decodings=("greedy",), name=name)
    before = {path: path.read_bytes() for path in (folder / "runs").rglob("*") if path.is_file()}
    seen = type_in("runs/one", "runs/two/")
    assert seen.exit_code == 0, seen.output
    assert "two: cpo" in seen.output
    assert "reports/one-vs-two/index.html" in seen.output
    assert (folder / "reports" / "one-vs-two" / "report.json").is_file()
    assert {path: path.read_bytes() for path in (folder / "runs").rglob("*") if path.is_file()} == before


def test_one_run_needs_no_configuration_file(folder):
    make_fake_run(folder / "one", rows=20, steps=5, decodings=("greedy",))
    assert type_in("one", "--out", "elsewhere").exit_code == 0
    assert (folder / "elsewhere" / "cards" / "cpo" / "README.md").is_file()


@pytest.mark.parametrize("out", ["run", "run/report"])
def test_a_report_is_never_written_into_a_run(folder, out):
    (folder / "run").mkdir()
    seen = type_in("run", "--out", out)
    assert seen.exit_code == 2
    assert "lies within the run run" in seen.stderr
    assert list((folder / "run").iterdir()) == []


def test_a_damaged_run_is_told_plainly(folder):
    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text("{")
    seen = type_in("run")
    assert seen.exit_code == 1
    assert "config.json is not JSON" in seen.stderr
