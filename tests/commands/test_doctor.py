import json
from pathlib import Path

import pytest

from cpo_ray.checks import machine
from cpo_ray.checks.machine import Check
from tests.commands.command_line import invoke

LAUNCHER = Path(__file__).parents[2] / "cluster.yaml"


@pytest.mark.parametrize(("worst", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_only_a_failed_check_fails_the_command(monkeypatch, worst, code):
    monkeypatch.setattr(machine, "check_machine", lambda _: [Check("[odd] name", worst, "seen", "do this")])
    result = invoke("doctor")
    assert result.exit_code == code
    assert "[odd] name" in result.stdout
    assert "do this" in result.stdout
    (check,) = json.loads(invoke("doctor", "--json").stdout)
    assert (check["name"], check["status"]) == ("[odd] name", worst)


def test_a_cluster_file_is_checked(tmp_path, monkeypatch):
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir(parents=True)
    token.write_text("secret")
    monkeypatch.setenv("HOME", str(tmp_path))
    result = invoke("doctor", "--cluster", LAUNCHER)
    assert result.exit_code == 1
    assert "cluster.yaml:" in result.stdout
    assert invoke("doctor", "--cluster", "nowhere.yaml").exit_code == 2
