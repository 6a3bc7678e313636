from pathlib import Path

from tests.commands.command_line import invoke

ROOT = Path(__file__).parents[2]


def test_the_shipped_configs_are_listed_and_copied(config, tmp_path):
    listed = invoke("configs")
    assert listed.exit_code == 0
    assert "demo" in listed.stdout
    assert invoke("configs", "list").stdout == listed.stdout
    assert "cpo-ray validate demo.yaml" in invoke("configs", "copy", "demo").stdout
    assert (tmp_path / "demo.yaml").read_text() == (ROOT / "configs" / "demo.yaml").read_text()
    again = invoke("configs", "copy", "demo.yaml")
    assert again.exit_code == 2
    assert "exists already" in again.stderr
    assert "did you mean 'demo'" in invoke("configs", "copy", "dmo").stderr


def test_an_incomplete_installation_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr("cpo_ray.config.shipped.CONFIGS", tmp_path)
    result = invoke("configs")
    assert result.exit_code == 2
    assert "this installation is incomplete" in result.stderr


def test_a_shipped_config_is_shown_with_what_it_extends():
    assert invoke("configs", "show", "demo").stdout.startswith("# The whole method")
    assert "extends" not in invoke("configs", "show", "paper/table2_mixn").stdout
    unknown = invoke("configs", "show", "something-else-entirely")
    assert unknown.exit_code == 2
    assert "did you mean" not in unknown.stderr, "a suggestion only where the name is near"
