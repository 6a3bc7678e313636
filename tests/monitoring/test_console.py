import io
import logging
import os
import subprocess
import sys
import warnings

import pytest
from rich.console import Console

from cpo_ray.monitoring import console


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def piped(monkeypatch):
    output = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=output, force_terminal=False, soft_wrap=True))
    return output


def test_plain_lines_show_progress_rate_and_time_left(piped, clock):
    with console.progress_bar("data", 100, "rows") as bar:
        clock[0] += 4
        bar.advance(20, "train")  # too early for a line
        clock[0] += 6
        bar.advance(20, "train")
        clock[0] += 5
        bar.set_completed(100, "a [note]")
    assert [line.strip() for line in piped.getvalue().splitlines()] == [
        "data: 40/100, 4.0 rows/s, 15 s left, train",
        "data: 100/100, 6.7 rows/s, a [note]",
    ]


@pytest.mark.parametrize(
    ("total", "done", "line"),
    [
        (0.0038, 0.0038, None),
        (0, 0, None),
        (0, 3, "reading: 3 MB, 0.2 MB/s"),
        (0.4, 0.4, "reading: 0.4/0.4, 25 s each"),
        (7.64, 7.6, "reading: 7.6/7.6, 0.8 MB/s"),
    ],
)
def test_plain_lines_never_show_a_total_or_a_time_of_zero(piped, clock, total, done, line):
    with console.progress_bar("reading", total, "MB") as bar:
        clock[0] += 5
        bar.advance(done)
        clock[0] += 5
    if line is None:
        assert piped.getvalue() == ""
    else:
        assert "0/0" not in piped.getvalue()
        assert "0 s left" not in piped.getvalue()
        assert line.split(",")[0] in piped.getvalue()


def test_a_bar_without_total_shows_what_is_done_while_it_runs(piped, clock):
    with console.progress_bar("reading", 0, "MB") as bar:
        clock[0] += 11
        bar.advance(22)
        clock[0] += 11
        bar.advance(22)
    assert [line.strip() for line in piped.getvalue().splitlines()] == [
        "reading: 22 MB, 2.0 MB/s",
        "reading: 44 MB, 2.0 MB/s",
        "reading: 44 MB, 2.0 MB/s",
    ]


@pytest.mark.parametrize("total", [0, 0.0038])
def test_a_terminal_gets_no_bar_without_a_total(monkeypatch, total):
    screen = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=screen, force_terminal=True, width=120))
    with console.progress_bar("reading", total, "MB") as bar:
        bar.set_completed(total)
    assert "reading" in screen.getvalue()
    assert "0/0" not in screen.getvalue()
    assert "0:00" not in screen.getvalue()
    assert "\u2501" not in screen.getvalue()


def test_a_bar_that_fails_leaves_no_last_line(piped, clock):
    with pytest.raises(ZeroDivisionError), console.progress_bar("cpo", 10, "steps"):
        raise ZeroDivisionError
    assert piped.getvalue() == ""


def test_a_terminal_gets_a_bar(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=screen, force_terminal=True, width=120))
    with console.progress_bar("cpo", 10, "steps") as bar:
        bar.set_completed(4, "loss 2.48")
        bar.advance(2, "loss 2.31")
    assert "cpo" in screen.getvalue()
    assert "6/10" in screen.getvalue()
    assert "loss 2.31" in screen.getvalue()


def test_output_of_libraries_goes_to_the_log_and_ours_to_the_console(tmp_path, capfd):
    log, root = tmp_path / "logs" / "data.log", logging.getLogger()
    before = (list(root.handlers), root.level)
    with console.redirect_output(log):
        logging.getLogger("some.library").warning("blocks are large")
        warnings.warn("third-party word", UserWarning, stacklevel=1)
        os.write(1, b"printed by a library\n")
        subprocess.run(["sh", "-c", "echo from a child >&2"], check=True)
        console.say("ours")
    output = capfd.readouterr()
    for words in ("blocks are large", "third-party word", "printed by a library", "from a child"):
        assert words in log.read_text()
        assert words not in output.out + output.err
    assert "ours" in output.out
    assert (list(root.handlers), root.level) == before


def test_output_is_restored_after_a_failed_stage(tmp_path, capfd):
    with pytest.raises(ZeroDivisionError), console.redirect_output(tmp_path / "x.log"):
        raise ZeroDivisionError
    os.write(1, b"back\n")
    console.say("ours")
    assert capfd.readouterr().out.split() == ["back", "ours"]


def test_our_lines_follow_stdout_after_a_stage(tmp_path, monkeypatch):
    with console.redirect_output(tmp_path / "x.log"):
        pass
    elsewhere = io.StringIO()
    monkeypatch.setattr(sys, "stdout", elsewhere)
    console.say("ours")
    assert elsewhere.getvalue() == "ours\n"


def test_redirecting_leaves_the_warning_filters_alone(tmp_path):
    before = list(warnings.filters)
    with console.redirect_output(tmp_path / "x.log"):
        pass
    assert list(warnings.filters) == before
