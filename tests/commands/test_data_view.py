import json
from pathlib import Path

from tests.commands.command_line import invoke

ROWS = [
    {"messages": [{"role": "user", "content": f"Add {n}."}, {"role": "assistant", "content": f"Sum \x1b[31m{n}."}]}
    for n in range(30)
]
BAD = [{"messages": ROWS[0]["messages"][:1]}] * 2


def write_config(folder: Path, *lines: str) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, *BAD]))
    path = folder / "mine.yaml"
    path.write_text("\n".join(["name: mine", "data:", f"  path: {folder}/rows.jsonl", *lines]))
    return path


def test_the_first_rows_are_shown_as_text_tokens_and_mask(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    config = write_config(tmp_path, "  tokenizer: {vocabulary_size: 300}", "  max_response_tokens: 12")
    result = invoke("show", "data", config, "--rows", "2")
    assert result.exit_code == 0, result.output
    assert result.stdout.count(" row ") == 2
    assert "Sum \\x1b[31m" in result.stdout
    assert "\x1b" not in result.stdout
    lines = [line.split() for line in result.stdout.splitlines()]
    prompts, responses = ([line for line in lines if line[:1] == [mask]] for mask in ("0", "1"))
    assert len(prompts) == len(responses) == 2
    assert "\N{MIDDLE DOT}" in prompts[0][2]
    assert (int(prompts[0][1]), int(responses[0][1])) == (len(prompts[0]) - 2, len(responses[0]) - 2)


def test_what_is_left_out_is_counted_by_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    config = write_config(tmp_path, "  train_rows: 20", "  validation_rows: 0", "  test_rows: 4")
    text = " ".join(invoke("show", "data", config).stdout.split())
    assert "rows: 20 train, 0 validation, 4 test" in text
    assert "2 rows that cannot be used" in text
    assert "6 rows beyond the sizes of the splits" in text
    assert f"2 like {tmp_path}/rows.jsonl:31: messages ends with a message of the user" in text
    assert "data.on_bad_row is `error`: stage `data` stops at the first of them" in text


def test_an_unknown_split_is_named(tmp_path):
    result = invoke("show", "data", write_config(tmp_path), "--split", "dev")
    assert result.exit_code == 2
    assert "--split dev: the data has train, validation, test" in " ".join(result.output.split())


def test_validate_shows_the_beginning_of_the_data_and_refuses_bad_rows(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    config = write_config(tmp_path)
    result = invoke("validate", config)
    text = " ".join(result.output.split())
    assert result.exit_code == 1
    assert "rows.jsonl: JSON lines, layout `messages`, 32 rows; of the first 32, 2 cannot be used" in text
    assert "splits: 24 train, 3 validation, 3 test, of 30 usable rows" in text
    assert "Repair it, or set data.on_bad_row=quarantine" in text
    assert invoke("validate", config, "--set", "data.on_bad_row=quarantine").exit_code == 0
    assert invoke("plan", config, "--gpu", "a100-80").exit_code == 0
