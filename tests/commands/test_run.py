import errno
from pathlib import Path

import pytest

from cpo_ray.commands import run
from cpo_ray.errors import ConfigError, RunInUseError, RunMismatchError, TrainingError
from cpo_ray.pipeline import STAGES
from tests.commands.command_line import invoke


def fail_with(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(run, "run_pipeline", fail)


def test_run_runs_all_stages(config, pipeline_calls):
    assert invoke("run", config).exit_code == 0
    (call,) = pipeline_calls
    assert call["root"] == Path("runs/x")
    assert (call["first"], call["last"], call["accept_changes"]) == (None, None, False)
    assert call["command"] == "x.yaml"


def test_run_passes_every_option_on(config, pipeline_calls):
    options = ["--run-dir", "my run", "--set", "training.steps=7", "--set", "objective.beta=1", "--accept-changes"]
    result = invoke("run", config, *options, "--from", "sampling", "--until", "cpo")
    assert result.exit_code == 0, result.output
    (call,) = pipeline_calls
    assert call["root"] == Path("my run")
    assert call["config"].training.steps == 7
    assert call["config"].objective.beta == 1
    assert (call["first"], call["last"], call["accept_changes"]) == ("sampling", "cpo", True)
    assert call["command"] == "x.yaml --run-dir 'my run' --set training.steps=7 --set objective.beta=1"


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_a_command(config, pipeline_calls, stage):
    assert invoke(stage, config).exit_code == 0
    assert (pipeline_calls[0]["first"], pipeline_calls[0]["last"]) == (stage, stage)


def test_an_unknown_stage_names_the_nearest(config, pipeline_calls):
    result = invoke("run", config, "--from", "jugding")
    assert result.exit_code == 2
    assert "did you mean judging?" in result.stderr
    assert pipeline_calls == []


def test_stages_in_the_wrong_order_are_refused(config, pipeline_calls):
    result = invoke("run", config, "--from", "report", "--until", "data")
    assert result.exit_code == 2
    assert "--from report comes after --until data" in result.stderr
    assert pipeline_calls == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("the [batch] does not divide"), 2),
        (RunInUseError("in use by pid 1"), 1),
        (RunMismatchError("objective.beta  5.0 -> 2.0"), 1),
        (TrainingError("the loss is not finite for rows ab"), 1),
    ],
)
def test_an_error_that_the_user_can_fix_is_one_paragraph(config, monkeypatch, error, code):
    fail_with(monkeypatch, error)
    result = invoke("run", config)
    assert result.exit_code == code
    assert result.stderr == f"{error}\n"
    assert str(error) not in result.stdout


def test_a_full_disk_is_reported_without_a_traceback(config, monkeypatch):
    fail_with(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    result = invoke("run", config)
    assert result.exit_code == 1
    assert "No space left on device. Finished work is kept" in result.stderr


def test_a_bug_keeps_its_traceback(config, monkeypatch):
    fail_with(monkeypatch, ZeroDivisionError("ours"))
    assert isinstance(invoke("run", config).exception, ZeroDivisionError)


def test_after_ctrl_c_the_command_to_continue_is_printed(config, monkeypatch):
    fail_with(monkeypatch, KeyboardInterrupt())
    result = invoke("run", config, "--run-dir", "my run", "--until", "cpo")
    assert result.exit_code == 130
    assert result.stderr.splitlines() == [
        "Stopped. The same command continues the run: cpo-ray run x.yaml --run-dir 'my run' --until cpo"
    ]


def test_an_unknown_key_exits_with_two(config, pipeline_calls):
    result = invoke("run", config, "--set", "training.stepz=3")
    assert result.exit_code == 2
    assert "unknown key `training.stepz`; did you mean `training.steps`?" in result.stderr
    assert pipeline_calls == []


def test_a_missing_config_exits_with_two():
    result = invoke("run", "nowhere.yaml")
    assert result.exit_code == 2
    assert "no configuration file nowhere.yaml" in result.stderr
