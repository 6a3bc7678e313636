from tests.commands.command_line import invoke


def test_validate_prints_defaults_and_what_follows_from_them(config, pipeline_calls):
    result = invoke("validate", config)
    assert result.exit_code == 0
    assert "beta: 5.0" in result.stdout
    assert "K = 12: the truth and 11 negatives (3 batch, 5 meanfield, 3 truncation)" in result.stdout
    assert "tokens per CPO step: at most 49,152" in result.stdout  # 64 * (192 + 9 * 64)
    assert "2 workers x 2 microbatches of 16 prompts" in result.stdout
    assert pipeline_calls == []
