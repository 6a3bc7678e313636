import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cpo_ray.artifacts import Journal
from cpo_ray.config import DecodingConfig
from cpo_ray.errors import ServiceError
from cpo_ray.evaluation.generation import RETRIES, generate_answers, row_seed
from cpo_ray.inference import client
from cpo_ray.inference.client import retry_after
from tests.flaky_server import KEY, Service, serve_flaky

EXAMPLES = [
    {"id": f"row{n}", "prompt": f"prompt {n}", "response": f"gold {n}", "prompt_ids": [n, n + 1]} for n in range(40)
]


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT_S", 0.0002)


def complete(body: dict[str, Any]) -> dict[str, Any]:
    """A greedy model: the answer depends on the prompt only; answers to even prompts end with EOS."""
    first = body["prompt"][0]
    reason = "length" if first % 2 else "stop"
    return {
        "choices": [{"index": 0, "text": f"answer {first}", "finish_reason": reason}],
        "usage": {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7},
    }


def generate(service: Service, out: Path, examples: list[dict[str, Any]] = EXAMPLES, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "url": service.url,
        "key": KEY,
        "model": "cpo",
        "examples": examples,
        "decoding": DecodingConfig(temperature=0.7, top_p=0.9, top_k=50),
        "max_tokens": 64,
        "seed": 17,
        "concurrency": 4,
        "out": out,
        "on_row": lambda: None,
    }
    return generate_answers(**(arguments | changes))


def test_rows_are_complete_ordered_and_independent_of_failures(tmp_path: Path) -> None:
    seen: list[int] = []
    with serve_flaky(complete) as steady, serve_flaky(complete, failing=0.3) as flaky:
        generate(steady, tmp_path / "steady.jsonl", concurrency=1)
        summary = generate(flaky, tmp_path / "flaky.jsonl", concurrency=8, on_row=lambda: seen.append(1))
        assert {"429", "500", "drop"} <= set(flaky.failures)
        assert flaky.most_at_once <= 8
    assert (tmp_path / "steady.jsonl").read_bytes() == (tmp_path / "flaky.jsonl").read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "flaky.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [example["id"] for example in EXAMPLES]
    assert rows[2] == {
        "id": "row2",
        "prompt": "prompt 2",
        "reference": "gold 2",
        "response": "answer 2",
        "tokens": 4,
        "finish_reason": "stop",
    }
    assert rows[3]["tokens"] == 5
    assert summary == {"rows": 40, "tokens": 180, "mean_tokens": 4.5, "truncated": 20, "empty": 0}
    assert len(seen) == 40
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flaky.jsonl", "steady.jsonl"]


def test_a_request_has_token_ids_decoding_and_its_own_seed(tmp_path: Path) -> None:
    with serve_flaky(complete) as service:
        generate(service, tmp_path / "out.jsonl", EXAMPLES[:2], concurrency=1)
        first, second = service.answered
    assert first == {
        "model": "cpo",
        "prompt": [0, 1],
        "max_tokens": 64,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 50,
        "seed": row_seed(17, "row0"),
    }
    assert second["seed"] == row_seed(17, "row1") != first["seed"]
    assert row_seed(18, "row0") != row_seed(17, "row0")


def test_rules_against_repetition_are_requested_only_where_they_are_set(tmp_path: Path) -> None:
    rules = DecodingConfig(repetition_penalty=1.2, no_repeat_ngram=3)
    with serve_flaky(complete) as service:
        generate(service, tmp_path / "ruled.jsonl", EXAMPLES[:1], decoding=rules)
        generate(service, tmp_path / "plain.jsonl", EXAMPLES[:1], decoding=DecodingConfig())
        ruled, plain = service.answered
    assert ruled == {**plain, "repetition_penalty": 1.2, "no_repeat_ngram_size": 3}
    assert plain.keys() & {"repetition_penalty", "no_repeat_ngram_size"} == set()


def test_beam_search_requests_all_beams_and_keeps_the_best(tmp_path: Path) -> None:
    def beams(_: dict[str, Any]) -> dict[str, Any]:
        choices = [
            {"index": 0, "text": "best", "finish_reason": "stop", "token_ids": [4, 5]},
            {"index": 1, "text": "next", "finish_reason": "length", "token_ids": [4, 5, 6]},
        ]
        return {"choices": choices, "usage": {"completion_tokens": 5}}

    with serve_flaky(beams) as service:
        decoding = DecodingConfig(beams=2, length_penalty=0.5)
        summary = generate(service, tmp_path / "beam.jsonl", EXAMPLES[:1], decoding=decoding)
        assert service.answered == [
            {
                "model": "cpo",
                "prompt": [0, 1],
                "max_tokens": 64,
                "temperature": 0.0,
                "use_beam_search": True,
                "n": 2,
                "length_penalty": 0.5,
                "return_token_ids": True,
            }
        ]
    assert summary == {"rows": 1, "tokens": 2, "mean_tokens": 2.0, "truncated": 0, "empty": 0}
    assert json.loads((tmp_path / "beam.jsonl").read_text())["response"] == "best"


def test_beam_search_refuses_sampling_settings() -> None:
    with pytest.raises(ValueError, match=r"beams: 4 does not sample.*got temperature 0.7, top_p 1, top_k 50"):
        DecodingConfig(beams=4, temperature=0.7, top_k=50)
    for rule in ({"repetition_penalty": 1.2}, {"no_repeat_ngram": 3}):
        with pytest.raises(ValueError, match=r"beams: 4 needs repetition_penalty 1 and no_repeat_ngram 0"):
            DecodingConfig(beams=4, **rule)


def test_a_killed_run_keeps_its_rows(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib, tests.evaluation.test_generation as t\n"
        "from tests.flaky_server import Service\n"
        "t.generate(Service(url=sys.argv[1]), pathlib.Path(sys.argv[2]), concurrency=1)\n"
    )
    out = tmp_path / "greedy.jsonl"
    journal = tmp_path / "greedy.jsonl.partial"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def slowly(body: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.05)
        return complete(body)

    with serve_flaky(slowly) as service:
        process = subprocess.Popen([sys.executable, "-c", script, service.url, str(out)], env=environment)
        while not (journal.is_file() and journal.read_bytes().count(b"\n") >= 5):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = journal.read_bytes().count(b"\n")
        with journal.open("ab") as file:
            file.write(b'{"key": "torn')
        assert not out.exists()
    with serve_flaky(complete) as service, serve_flaky(complete) as fresh:
        generate(service, out)
        generate(fresh, tmp_path / "fresh.jsonl")
        assert len(service.answered) == len(EXAMPLES) - kept
    assert out.read_bytes() == (tmp_path / "fresh.jsonl").read_bytes()
    assert not journal.exists()


def test_a_finished_decoding_is_not_requested_again_after_a_kill(tmp_path: Path) -> None:
    seen: list[int] = []
    with serve_flaky(complete) as service:
        first = generate(service, tmp_path / "greedy.jsonl")
        (tmp_path / "greedy.jsonl.partial").touch()  # a kill may happen between the two writes
        content = (tmp_path / "greedy.jsonl").read_bytes()
        assert generate(service, tmp_path / "greedy.jsonl", on_row=lambda: seen.append(1)) == first
        assert len(service.answered) == len(EXAMPLES)
    assert len(seen) == len(EXAMPLES)
    assert (tmp_path / "greedy.jsonl").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["greedy.jsonl"]


def test_another_decoding_does_not_reuse_the_journal(tmp_path: Path) -> None:
    with serve_flaky(complete) as service:
        with pytest.raises(ZeroDivisionError):
            generate(service, tmp_path / "out.jsonl", EXAMPLES[:3], on_row=lambda: 1 // 0, concurrency=1)
        generate(service, tmp_path / "out.jsonl", EXAMPLES[:3], decoding=DecodingConfig(), concurrency=1)
        assert [body["temperature"] for body in service.answered] == [0.7, 0.0, 0.0, 0.0]


def test_a_refusal_is_not_retried(tmp_path: Path) -> None:
    with serve_flaky(complete) as service:
        with pytest.raises(ServiceError, match="HTTP 401") as caught:
            generate(service, tmp_path / "out.jsonl", key="wrong-key")
        assert "wrong-key" not in str(caught.value)
        service.status = 404
        with pytest.raises(ServiceError, match="HTTP 404"):
            generate(service, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_a_service_that_stays_down_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "LONGEST_WAIT_S", 0.1)
    with serve_flaky(complete) as service:
        service.status = 503
        with pytest.raises(ServiceError, match=f"failed {1 + RETRIES} times; the last: HTTP 503"):
            generate(service, tmp_path / "out.jsonl", EXAMPLES[:1])
    with pytest.raises(ServiceError, match="ConnectError"):
        generate(service, tmp_path / "out.jsonl", EXAMPLES[:1])


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"choices": [], "usage": {"completion_tokens": 1}},
        {"choices": [{"text": "x", "finish_reason": "abort"}], "usage": {"completion_tokens": 1}},
        {"choices": [{"text": "x", "finish_reason": "stop"}], "usage": None},
    ],
)
def test_an_answer_without_its_parts_is_an_error(tmp_path: Path, answer: dict[str, Any]) -> None:
    with serve_flaky(lambda _: answer) as service, pytest.raises(ServiceError, match="cpo"):
        generate(service, tmp_path / "out.jsonl", EXAMPLES[:1])


def test_retry_after_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def note(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(client.asyncio, "sleep", note)
    with serve_flaky(complete, retry_after="7") as service:
        service.status = 429
        with pytest.raises(ServiceError):
            generate(service, tmp_path / "out.jsonl", EXAMPLES[:1])
    assert len(waits) == RETRIES
    assert all(7 < wait <= 7 + client.FIRST_WAIT_S * 2**attempt for attempt, wait in enumerate(waits))
    with serve_flaky(complete, retry_after="86400") as service:
        service.status = 429
        with pytest.raises(ServiceError, match="asks to wait 86400 s"):
            generate(service, tmp_path / "out.jsonl", EXAMPLES[:1])


def test_retry_after_reads_seconds_and_dates() -> None:
    assert retry_after("2.5") == 2.5
    assert retry_after("") == retry_after("soon") == retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after("Fri, 31 Dec 2099 23:59:59 GMT") > 1e6


def test_a_journal_survives_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b'{"key":"b","value":1}\n{"key":"c","val')
    with Journal(path) as journal:
        assert "c" not in journal
        journal.add("a", "ü")
        journal.sort()
    assert path.read_text() == '{"key":"a","value":"ü"}\n{"key":"b","value":1}\n'
