import ast
import errno
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cpo_ray import __version__, cli
from cpo_ray.errors import ConfigError, RunInUseError, RunMismatchError, TrainingError
from cpo_ray.pipeline import STAGES

ROOT = Path(__file__).parent.parent


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text("# A small run:\n#\n#     cpo-ray run x.yaml\nname: x\n")
    return "x.yaml"


@pytest.fixture
def asked(monkeypatch):
    """What the pipeline was asked to do."""
    calls = []

    def record(config, root, **options):
        calls.append({"config": config, "root": root} | options)

    monkeypatch.setattr(cli, "run_pipeline", record)
    return calls


def type_in(*words):
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def fail_with(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(cli, "run_pipeline", fail)


def test_run_asks_for_everything(config, asked):
    assert type_in("run", config).exit_code == 0
    (call,) = asked
    assert call["root"] == Path("runs/x")
    assert (call["first"], call["last"], call["accept_changes"]) == (None, None, False)
    assert call["command"] == "x.yaml"


def test_run_passes_every_option_on(config, asked):
    options = ["--run-dir", "my run", "--set", "training.steps=7", "--set", "objective.beta=1", "--accept-changes"]
    seen = type_in("run", config, *options, "--from", "sampling", "--until", "cpo")
    assert seen.exit_code == 0, seen.output
    (call,) = asked
    assert call["root"] == Path("my run")
    assert call["config"].training.steps == 7
    assert call["config"].objective.beta == 1
    assert (call["first"], call["last"], call["accept_changes"]) == ("sampling", "cpo", True)
    assert call["command"] == "x.yaml --run-dir 'my run' --set training.steps=7 --set objective.beta=1"


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_a_command(config, asked, stage):
    assert type_in(stage, config).exit_code == 0
    assert (asked[0]["first"], asked[0]["last"]) == (stage, stage)


@pytest.fixture
def reported(monkeypatch, tmp_path):
    """What a report of run directories was asked for; two such directories."""
    calls = []
    monkeypatch.setattr(cli, "report_runs", lambda roots, out: calls.append((roots, out)))
    for name in ("one", "two"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    return calls


def test_report_takes_run_directories(config, asked, reported):
    assert type_in("report", "runs/one").exit_code == 0
    assert type_in("report", "runs/one", "runs/two/").exit_code == 0
    assert type_in("report", "runs/one", "runs/two", "--out", "elsewhere").exit_code == 0
    assert reported == [
        ([Path("runs/one")], None),
        ([Path("runs/one"), Path("runs/two")], None),
        ([Path("runs/one"), Path("runs/two")], Path("elsewhere")),
    ]
    assert asked == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["x.yaml", "runs/one"],
            "x.yaml is no run directory: report takes one configuration file, or run directories only",
        ),
        (["x.yaml", "x.yaml"], "report takes one configuration file"),
        (["runs/one", "--set", "seed=3"], "go with a configuration file"),
        (["runs/one", "--run-dir", "runs/two"], "go with a configuration file"),
        (["x.yaml", "--out", "elsewhere"], "--out goes with run directories"),
        (["runs/nowhere"], "no configuration file runs/nowhere"),
    ],
)
def test_report_says_what_it_cannot_mix(config, asked, reported, words, told):
    seen = type_in("report", *words)
    assert seen.exit_code == 2
    assert told in seen.stderr
    assert asked == reported == []


def test_every_stage_is_in_one_job_and_one_job_is_all():
    names, seen = list(STAGES), []
    for path in (ROOT / "jobs").glob("*.py"):
        (call,) = re.findall(r"run_job\((.*)\)", path.read_text())
        command, *options = ast.literal_eval(f"[{call}]")
        if command in STAGES:
            seen.append(command)
        elif options:
            first, last = options[1::2]
            seen += names[names.index(first) : names.index(last) + 1]
        elif command == "run":
            assert path.stem == "pipeline"
    assert sorted(seen) == sorted(names)


def test_a_job_may_be_a_part_of_the_pipeline(config, asked, monkeypatch):
    monkeypatch.setattr(cli.sys, "argv", ["jobs/train.py", config])
    with pytest.raises(SystemExit) as ended:
        cli.run_job("run", "--from", "cpo", "--until", "mle")
    assert ended.value.code == 0
    assert (asked[0]["first"], asked[0]["last"]) == ("cpo", "mle")


def test_a_job_without_storage_of_its_own_is_warned(config, asked, monkeypatch, capsys):
    monkeypatch.setattr(cli.sys, "argv", ["jobs/data.py", config])
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    for variable, warned in ((None, True), ("somewhere", False)):
        if variable:
            monkeypatch.setenv("CPO_RAY_RUNS", variable)
        else:
            monkeypatch.delenv("CPO_RAY_RUNS", raising=False)
        with pytest.raises(SystemExit):
            cli.run_job("data")
        assert ("give --run-dir, or set CPO_RAY_RUNS" in capsys.readouterr().out) == warned
    assert [call["root"] for call in asked] == [Path("runs/x"), Path("somewhere/x")]


@pytest.mark.parametrize("address", [None, "10.0.0.1:6379"])
def test_a_job_joins_the_cluster_that_runs_it(config, asked, monkeypatch, address):
    monkeypatch.setattr(cli.sys, "argv", ["jobs/data.py", config])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(SystemExit) as ended:
        cli.run_job("data")
    assert ended.value.code == 0
    assert asked[0]["config"].cluster.address == ("auto" if address else None)


def test_an_unknown_stage_names_the_nearest(config, asked):
    seen = type_in("run", config, "--from", "jugding")
    assert seen.exit_code == 2
    assert "did you mean judging?" in seen.stderr
    assert asked == []


def test_stages_in_the_wrong_order_are_refused(config, asked):
    seen = type_in("run", config, "--from", "report", "--until", "data")
    assert seen.exit_code == 2
    assert "--from report comes after --until data" in seen.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("the [batch] does not divide"), 2),
        (RunInUseError("in use by pid 1"), 1),
        (RunMismatchError("objective.beta  5.0 -> 2.0"), 1),
        (TrainingError("the loss is not finite for rows ab"), 1),
    ],
)
def test_what_a_user_can_act_on_is_one_paragraph(config, monkeypatch, error, code):
    fail_with(monkeypatch, error)
    seen = type_in("run", config)
    assert seen.exit_code == code
    assert seen.stderr == f"{error}\n"
    assert seen.stdout == ""


def test_a_full_disk_is_told_plainly(config, monkeypatch):
    fail_with(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    seen = type_in("run", config)
    assert seen.exit_code == 1
    assert "No space left on device. What is finished is kept" in seen.stderr


def test_a_fault_of_ours_keeps_its_traceback(config, monkeypatch):
    fail_with(monkeypatch, ZeroDivisionError("ours"))
    assert isinstance(type_in("run", config).exception, ZeroDivisionError)


def test_ctrl_c_says_how_to_go_on(config, monkeypatch):
    fail_with(monkeypatch, KeyboardInterrupt())
    seen = type_in("run", config, "--run-dir", "my run", "--until", "cpo")
    assert seen.exit_code == 130
    assert seen.stderr.splitlines() == [
        "Stopped. The same command continues the run: cpo-ray run x.yaml --run-dir 'my run' --until cpo"
    ]


def test_an_unknown_key_exits_with_two(config, asked):
    seen = type_in("run", config, "--set", "training.stepz=3")
    assert seen.exit_code == 2
    assert "unknown key `training.stepz`; did you mean `training.steps`?" in seen.stderr
    assert asked == []


def test_a_missing_config_exits_with_two():
    seen = type_in("run", "nowhere.yaml")
    assert seen.exit_code == 2
    assert "no configuration file nowhere.yaml" in seen.stderr


def test_validate_prints_defaults_and_what_follows(config, asked):
    seen = type_in("validate", config)
    assert seen.exit_code == 0
    assert "beta: 5.0" in seen.stdout
    assert "K = 12: the truth and 11 negatives (3 batch, 5 meanfield, 3 truncation)" in seen.stdout
    assert "tokens per CPO step: at most 49,152" in seen.stdout  # 64 * (192 + 9 * 64)
    assert "2 workers x 2 microbatches of 16 prompts" in seen.stdout
    assert asked == []


def test_plan_prints_the_estimate(config):
    seen = type_in("plan", config, "--gpu", "h100", "--nodes", "2")
    assert seen.exit_code == 0, seen.output
    assert "16 x H100" in seen.stdout
    assert "bottleneck" in seen.stdout


def test_plan_asks_for_the_size_of_a_model_that_is_elsewhere(config, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    wanted = ["plan", config, "--set", "model.path=nobody/has-this"]
    seen = type_in(*wanted)
    assert seen.exit_code == 2
    assert "give --parameters N" in seen.stderr
    assert "1,500,000,000" in type_in(*wanted, "--parameters", "1.5e9").stdout


def test_the_shipped_configs_are_listed_and_copied(config, tmp_path):
    listed = type_in("configs")
    assert listed.exit_code == 0
    assert "demo" in listed.stdout
    assert type_in("configs", "list").stdout == listed.stdout
    assert "cpo-ray validate demo.yaml" in type_in("configs", "copy", "demo").stdout
    assert (tmp_path / "demo.yaml").read_text() == (ROOT / "configs" / "demo.yaml").read_text()
    again = type_in("configs", "copy", "demo.yaml")
    assert again.exit_code == 2
    assert "exists already" in again.stderr
    assert "did you mean 'demo'" in type_in("configs", "copy", "dmo").stderr


def test_an_installed_package_says_where_the_configs_are(monkeypatch, tmp_path):
    monkeypatch.setattr("cpo_ray.config.shipped.CONFIGS", tmp_path)
    seen = type_in("configs")
    assert seen.exit_code == 2
    assert "source checkout" in seen.stderr


def test_help_is_for_someone_who_read_the_abstract():
    text = " ".join(type_in("--help").stdout.split())
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
    assert type_in("--version").stdout == f"cpo-ray {__version__}\n"
