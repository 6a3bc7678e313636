import json

from tests.commands.command_line import invoke


def test_plan_prints_the_estimate(config):
    result = invoke("plan", config, "--gpu", "h100", "--nodes", "2")
    assert result.exit_code == 0, result.output
    assert "16 x H100" in result.stdout
    assert "means of a sample drawn now" in result.stdout  # of the synthetic task
    assert "bottleneck" in result.stdout


def test_plan_prints_nothing_but_json_if_asked(config):
    found = json.loads(invoke("plan", config, "--json", "--gpu", "cpu").stdout)
    assert found["config"]["objective"]["beta"] == 5.0
    assert found["device"]


def test_plan_asks_for_the_size_of_a_model_that_is_not_on_this_machine(config, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    words = ["plan", config, "--set", "model.path=nobody/has-this"]
    result = invoke(*words)
    assert result.exit_code == 2
    assert "give --parameters N" in result.stderr
    assert "1,500,000,000" in invoke(*words, "--parameters", "1.5e9").stdout


def test_the_table_has_two_eight_and_sixty_four_machines_and_a_price(config, monkeypatch):
    monkeypatch.setenv("COLUMNS", "180")
    result = invoke("plan", config, "--gpu", "a100-40", "--nodes", "4", "--price", "10")
    assert result.exit_code == 0, result.output
    lines = result.stdout.split("On more machines")[1].splitlines()
    assert [line.split("│")[1].strip() for line in lines if "│" in line] == ["2", "4", "8", "64"]
    assert "price" in result.stdout
    assert "On more machines" not in invoke("plan", config, "--gpu", "cpu").stdout
