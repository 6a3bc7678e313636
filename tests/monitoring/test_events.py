import json
import logging

import pytest

from cpo_ray.monitoring.console import redirect_output, say
from cpo_ray.monitoring.events import recording


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_line_has_its_run_and_stage(tmp_path, capsys):
    path = tmp_path / "logs" / "events.jsonl"
    with redirect_output(tmp_path / "data.log"), recording(path, "demo", "data"):
        say("  [green]made[/] data: 3 rows")
        logging.getLogger("some.library").info("small talk")
        logging.getLogger("some.library").warning("blocks are %s", "large")
    lines = read(path)
    assert [line["message"] for line in lines] == [
        "stage begins",
        "made data: 3 rows",
        "blocks are large",
        "stage ends",
    ]
    assert {(line["run"], line["stage"]) for line in lines} == {("demo", "data")}
    assert [line["level"] for line in lines] == ["info", "info", "warning", "info"]
    assert lines[2]["logger"] == "some.library"
    assert lines[0]["time"].endswith("+00:00")
    assert lines[-1]["outcome"] == "done"
    assert lines[-1]["seconds"] >= 0
    assert "made data: 3 rows" in (tmp_path / "data.log").read_text()


def test_a_failed_stage_is_recorded_with_its_error(tmp_path):
    path = tmp_path / "events.jsonl"
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), redirect_output(tmp_path / "x.log"), recording(path, "demo", "cpo"):
            raise ZeroDivisionError("no rows")
    ends = [line for line in read(path) if "outcome" in line]
    assert [(line["outcome"], line["level"], line["message"]) for line in ends] == [
        ("ZeroDivisionError", "error", "stage ends: no rows")
    ] * 2


def test_our_lines_are_recorded_if_a_library_removes_the_root_loggers_handlers(tmp_path, capsys):
    """`import ray.serve.llm` removes them in the middle of a stage."""
    path, root = tmp_path / "events.jsonl", logging.getLogger()
    before = list(root.handlers)
    try:
        with redirect_output(tmp_path / "x.log"), recording(path, "demo", "generation"):
            root.handlers.clear()
            say("  cpo is up")
    finally:
        root.handlers[:] = before
    assert [line["message"] for line in read(path)] == ["stage begins", "cpo is up", "stage ends"]


def test_outside_a_stage_nothing_is_recorded(tmp_path, capsys):
    path = tmp_path / "events.jsonl"
    with recording(path, "demo", "data"):
        pass
    before = path.read_text()
    say("after")
    assert path.read_text() == before
