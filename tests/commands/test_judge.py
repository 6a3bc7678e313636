import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cpo_ray.cli import app
from cpo_ray.evaluation.templates import DOLLY_TEMPLATE
from cpo_ray.inference import client
from tests.flaky_server import KEY, Service, serve_flaky

ROOT = Path(__file__).parents[2]
ANNOTATIONS = ROOT.parent / "shared/data/judge/alpaca-7b_gpt4_annotations.json"
recorded = pytest.mark.skipif(not ANNOTATIONS.is_file(), reason=f"{ANNOTATIONS} is not here")


@pytest.fixture(autouse=True)
def _key_and_short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPO_RAY_JUDGE_KEY", KEY)
    monkeypatch.setattr(client, "FIRST_WAIT_S", 0.0002)


@pytest.fixture
def answers(tmp_path: Path) -> tuple[Path, Path]:
    """Ten candidates, eight of them not empty, against gold."""
    candidates, references = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write(candidates, [{"id": str(n), "prompt": f"p{n}", "response": "good" if n < 8 else ""} for n in range(10)])
    write(references, [{"id": str(n), "prompt": f"p{n}", "response": "gold"} for n in range(10)])
    return candidates, references


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def say(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}


def prefer_good(body: dict[str, Any]) -> dict[str, Any]:
    content = body["messages"][0]["content"]
    return say("A" if "Response A: good" in content or "Response B:  " in content else "B")


def words(answers: tuple[Path, Path], url: str, out: Path, *options: str) -> list[str]:
    files = ["--candidates", str(answers[0]), "--references", str(answers[1])]
    return ["judge", *files, "--judge-url", url, "--judge-model", "some-judge", "--out", str(out), *options]


def judge(answers: tuple[Path, Path], url: str, out: Path, *options: str) -> Result:
    return CliRunner().invoke(app, words(answers, url, out, *options))


def test_verdicts_and_a_summary_are_written(answers: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with serve_flaky(prefer_good, failing=0.1) as service:
        seen = judge(answers, service.url, out, "--yes", "--price", "2", "--price-answers", "10")
        assert seen.exit_code == 0, seen.output
        assert len(service.answered) == 20
    assert "10 pairs: 20 requests (0 answers are known), about" in seen.stdout
    assert "0.01 at 2 a million tokens" in seen.stdout
    assert "win rate 80.0%, 95% interval 49.0% to 94.3%: not significantly different from 50%" in seen.stdout
    assert "0.0% of the pairs flipped with the order; the first position was chosen 50.0% of the time" in seen.stdout
    summary = json.loads((out / "summary.json").read_text())
    assert summary["win_rate"] == 0.8
    assert summary["ci95"] == pytest.approx([0.4902, 0.9433], abs=1e-4)  # Wilson's
    assert [summary[what] for what in ("n", "wins", "losses", "ties", "invalid", "flip_rate")] == [10, 8, 2, 0, 0, 0]
    assert (summary["mean_length_candidate"], summary["mean_length_reference"]) == (0.8, 1.0)
    assert summary["judge_url"] == service.url
    assert summary["inputs"]["candidates"]["file"] == str(answers[0])
    assert summary["template"].format(prompt=1, response_a=2, response_b=3) == DOLLY_TEMPLATE.format(1, 2, 3)
    verdicts = [json.loads(line) for line in (out / "verdicts.jsonl").read_text().splitlines()]
    assert [row["outcome"] for row in verdicts] == ["win"] * 8 + ["loss"] * 2


def test_a_rerun_sends_no_request_and_needs_no_confirmation(answers: tuple[Path, Path], tmp_path: Path) -> None:
    with serve_flaky(prefer_good) as service:
        assert judge(answers, service.url, tmp_path / "out", "--yes").exit_code == 0
        again = judge(answers, service.url, tmp_path / "out")
        assert again.exit_code == 0, again.output
        assert "0 requests (20 answers are known)" in again.stdout
        assert len(service.answered) == 20


def test_no_request_is_sent_before_the_user_agrees(answers: tuple[Path, Path], tmp_path: Path) -> None:
    with serve_flaky(prefer_good) as service:
        alone = judge(answers, service.url, tmp_path / "out")
        assert alone.exit_code == 2
        assert "20 requests" in alone.stdout
        assert "add --yes, or --max-requests N" in alone.stderr
        beyond = judge(answers, service.url, tmp_path / "out", "--max-requests", "19", "--yes")
        assert beyond.exit_code == 2
        assert "20 requests are more than --max-requests 19" in beyond.stderr
        assert service.answered == []
        assert judge(answers, service.url, tmp_path / "out", "--max-requests", "20").exit_code == 0


def test_an_interactive_user_is_asked(
    answers: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cpo_ray.commands.judge._is_interactive", lambda: True)
    with serve_flaky(prefer_good) as service:
        command = words(answers, service.url, tmp_path / "out")
        declined = CliRunner().invoke(app, command, input="n\n")
        assert declined.exit_code == 1
        assert "Continue?" in declined.stdout
        assert service.answered == []
        assert CliRunner().invoke(app, command, input="y\n").exit_code == 0
        assert len(service.answered) == 20


def test_too_many_invalid_answers_fail_and_leave_no_summary(answers: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with serve_flaky(lambda _: say("Both are fine")) as service:
        seen = judge(answers, service.url, out, "--yes")
        assert seen.exit_code == 1
        assert "10 of 10 rows have an answer that is neither A nor B" in seen.stderr
        assert not (out / "summary.json").exists()
        tolerated = judge(answers, service.url, out, "--max-invalid-fraction", "1")
        assert tolerated.exit_code == 0, tolerated.output
        assert "no valid verdict, so no win rate" in tolerated.stdout


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--template", "doly"], "template doly: neither `dolly` nor `wiki`"),
        (["--key-variable", "NO_SUCH_KEY"], "needs its key in the environment variable NO_SUCH_KEY"),
        (["--judge-url", "localhost:8000"], "expected http:// or https://"),
        (["--judge-url", "oracle"], "expected http:// or https://"),
        (["--judge-url", "http://host:80a/v1"], "'http://host:80a/v1' is not a URL: Invalid port: '80a'"),
        (["--requests-per-minute", "0"], "requests_per_minute: Input should be greater than 0"),
        (["--price-answers", "3"], "--price-answers needs --price"),
        (["--references", "nowhere.jsonl"], "nowhere.jsonl cannot be read"),
    ],
)
def test_invalid_options_are_reported_before_any_request(
    answers: tuple[Path, Path], tmp_path: Path, options: list[str], complaint: str
) -> None:
    with serve_flaky(prefer_good) as service:
        seen = judge(answers, service.url, tmp_path / "out", "--yes", *options)
        assert service.answered == []
    assert seen.exit_code in {1, 2}
    assert complaint in seen.stderr


def test_two_files_with_the_same_answers_need_no_request(answers: tuple[Path, Path], tmp_path: Path) -> None:
    with serve_flaky(prefer_good) as service:
        seen = judge((answers[0], answers[0]), service.url, tmp_path / "out", "--yes")
        assert service.answered == []
    assert seen.exit_code == 0, seen.output
    assert "win rate 50.0%" in seen.stdout
    assert "the same text: no request was needed" in seen.stdout


@pytest.fixture
def annotated(tmp_path: Path) -> tuple[tuple[Path, Path], Callable[[dict[str, Any]], dict[str, Any]]]:
    """Answers of alpaca-7b and davinci to 805 instructions, and a judge that returns the verdicts recorded from GPT-4."""
    pairs = json.loads(ANNOTATIONS.read_text(encoding="utf-8"))
    files = tmp_path / "alpaca.jsonl", tmp_path / "davinci.jsonl"
    better: dict[str, str] = {}
    for file, which in zip(files, ("output_2", "output_1"), strict=True):
        rows = [{"id": str(n), "prompt": pair["instruction"], "response": pair[which]} for n, pair in enumerate(pairs)]
        write(file, rows)
    for pair in pairs:
        for first, second, letters in (("output_2", "output_1", "AB"), ("output_1", "output_2", "BA")):
            content = DOLLY_TEMPLATE.format(pair["instruction"], pair[first], pair[second])
            # Preference 2: output_2 is better, 1: output_1, else a tie: A whatever the order.
            better[content] = {2: letters[0], 1: letters[1]}.get(pair["preference"], "A")
    return files, lambda body: say(better[body["messages"][0]["content"]])


@recorded
@pytest.mark.e2e
def test_the_recorded_judge_gives_the_recorded_win_rate(annotated: Any, tmp_path: Path) -> None:
    """An uninterrupted run, and one killed half-way with many concurrent requests, write the same bytes."""
    files, answer = annotated
    steady, killed = tmp_path / "steady", tmp_path / "killed"
    with serve_flaky(answer, failing=0.1) as service:  # one for both: its URL is written down
        seen = judge(files, service.url, steady, "--yes", "--concurrency", "2")
        assert seen.exit_code == 0, seen.output
        total = len(service.answered)
        assert total == 1610 - 32  # the answers to 16 instructions are the same
        assert {"429", "500", "drop"} <= set(service.failures)
        service.answered.clear()
        kept = kill_half_way(words(files, service.url, killed, "--yes", "--concurrency", "32"), killed, service)
        asked = len(service.answered)
        assert 805 - 32 <= kept < total
        assert asked <= kept + 32
        seen = judge(files, service.url, killed, "--yes", "--concurrency", "32")
        assert seen.exit_code == 0, seen.output
        assert len(service.answered) - asked <= total - kept
    summary = json.loads((killed / "summary.json").read_text())
    assert summary["n"] == 805
    assert round(summary["win_rate"], 4) == 0.2646
    for name in ("verdicts.jsonl", "verdicts.answers", "summary.json"):
        assert (killed / name).read_bytes() == (steady / name).read_bytes()


def kill_half_way(command: list[str], out: Path, service: Service) -> int:
    """Run `cpo-ray command`, kill it when half of the answers have arrived, and return how many it kept."""
    journal = out / "verdicts.answers"
    script = "from cpo_ray import cli; from cpo_ray.inference import client; client.FIRST_WAIT_S = 0.002; cli.main()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", script, *command], env=environment, stdout=subprocess.DEVNULL)
    while len(service.answered) < 805:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "summary.json").exists()
    assert not (out / "verdicts.jsonl").exists()
    return journal.read_bytes().count(b"\n")
