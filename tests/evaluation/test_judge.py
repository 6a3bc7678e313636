import json
import random
from pathlib import Path
from typing import Any

import pytest

from cpo_ray import client
from cpo_ray.config import JudgeConfig
from cpo_ray.errors import ArtifactError, ServiceError
from cpo_ray.evaluation.judge import (
    DOLLY_TEMPLATE,
    WIKI_TEMPLATE,
    candidate_orders,
    decide,
    judge_answers,
    parse_answer,
)
from cpo_ray.records import Generation
from tests.flaky_server import KEY, Service, serve_flaky

ANNOTATIONS = Path(__file__).parents[3] / "shared/data/judge/alpaca-7b_gpt4_annotations.json"


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT_S", 0.002)


def row(number: int, response: str, reference: str = "gold") -> Generation:
    return Generation(
        id=f"row{number}",
        prompt=f"prompt {number}",
        reference=reference,
        response=response,
        tokens=1,
        finish_reason="stop",
    )


def say(text: str | None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}


def responses(body: dict[str, Any]) -> tuple[str, str]:
    content = body["messages"][0]["content"]
    first, second = content.split(" \n Response A: ")[1].split(" \n Response B: ")
    return first, second.split(" \n State only")[0]


def by_wish(body: dict[str, Any]) -> dict[str, Any]:
    """A judge that does what the candidate's text says: win, lose, flip (always A), mumble."""
    first, second = responses(body)
    wish, at = (second, "B") if first == "gold" else (first, "A")
    other = "B" if at == "A" else "A"
    return say({"win": at, "lose": other, "flip": "A"}.get(wish, "Both are fine"))


def judge(service: Service, out: Path, rows: list[Generation], **config: Any) -> dict[str, Any]:
    settings = JudgeConfig(**({"url": service.url, "model": "some-judge", "max_invalid_fraction": 0.5} | config))
    return judge_answers(rows, service.url, KEY, settings, 17, out, lambda: None)


def test_templates_are_the_papers() -> None:
    assert DOLLY_TEMPLATE.format("Q", "{}", "y") == (
        "For the following query to a chatbot, which response is more helpful?\n Query: Q \n Response A: {} \n"
        " Response B: y \n State only “A” or “B” to indicate which response is more helpful. \n More helpful:"
    )
    assert WIKI_TEMPLATE.format("P", "x", "y") == (
        "For the following prefix, which continuation is better?\n Prefix: P \n Continuation A: x \n"
        " Continuation B: y \n State only “A” or “B” to indicate which continuation is more helpful. \n Better:"
    )


@pytest.mark.parametrize("text", ["A", " A\n", '"A"', "“A”", "A.", "“A”.", "'A'"])
def test_an_answer_is_read(text: str) -> None:
    assert parse_answer(text) == "A"
    assert parse_answer(text.replace("A", "B")) == "B"


@pytest.mark.parametrize(
    "text", ["", "a", "AB", "A or B", "A B", "Response A", "C", "Neither", "A because", "A\nB", "..A"]
)
def test_anything_else_is_no_answer(text: str) -> None:
    assert parse_answer(text) is None


def test_decisions() -> None:
    assert decide(["A", "B"], [True, False]) == ("win", False)
    assert decide(["B", "A"], [True, False]) == ("loss", False)
    assert decide(["A", "A"], [True, False]) == ("tie", True)
    assert decide(["B", "B"], [True, False]) == ("tie", True)
    assert decide(["A", None], [True, False]) == ("invalid", False)
    assert decide([None, None], [True, False]) == ("invalid", False)
    assert decide(["B"], [False]) == ("win", False)
    assert decide(["A"], [False]) == ("loss", False)


def test_both_orders_are_asked_and_a_flip_is_a_tie(tmp_path: Path) -> None:
    wishes = ["win", "lose", "flip", "win", "mumble", ""]
    rows = [row(n, wish, reference="gold") for n, wish in enumerate(wishes)]
    with serve_flaky(by_wish) as service:
        summary = judge(service, tmp_path / "greedy.jsonl", rows)
        assert len(service.answered) == 12
        assert {body["temperature"] for body in service.answered} == {0}
    assert summary == {
        "judge": "some-judge",
        "order": "both",
        "n": 6,
        "wins": 2,
        "losses": 1,
        "ties": 1,
        "invalid": 2,
        "flip_rate": 0.25,
        "mean_length_candidate": 5 / 6,
        "mean_length_reference": 1.0,
        "win_rate": 2.5 / 4,
    }
    verdicts = [json.loads(line) for line in (tmp_path / "greedy.jsonl").read_text().splitlines()]
    assert [verdict["outcome"] for verdict in verdicts] == ["win", "loss", "tie", "win", "invalid", "invalid"]
    assert verdicts[2] == {
        "id": "row2",
        "outcome": "tie",
        "answers": ["A", "A"],
        "flipped": True,
        "candidate_words": 1,
        "reference_words": 1,
    }


def test_a_rerun_asks_nothing_twice_and_files_do_not_depend_on_failures(tmp_path: Path) -> None:
    rows = [row(n, random.Random(n).choice(["win", "lose", "flip"])) for n in range(30)]
    files = []
    for name, failing, concurrency in (("a", 0.0, 1), ("b", 0.3, 16)):
        out = tmp_path / name / "greedy.jsonl"
        with serve_flaky(by_wish, failing=failing) as service:
            first = judge(service, out, rows, concurrency=concurrency, retries=10)
            asked = len(service.answered)
            assert asked == 60
            assert judge(service, out, [*rows, row(99, "win")], concurrency=concurrency)["n"] == 31
            assert len(service.answered) == asked + 2
            assert judge(service, out, rows, concurrency=concurrency) == first
            assert len(service.answered) == asked + 2
        files.append((out.read_bytes(), (out.parent / "greedy.answers").read_bytes()))
    assert files[0] == files[1]


def test_equal_pairs_are_asked_about_once(tmp_path: Path) -> None:
    rows = [row(0, "win") for _ in range(10)]
    with serve_flaky(by_wish) as service:
        assert judge(service, tmp_path / "greedy.jsonl", rows)["wins"] == 10
        assert len(service.answered) == 2


def test_the_papers_order_asks_once_on_a_seeded_side(tmp_path: Path) -> None:
    rows = [row(n, "win" if n % 2 else "flip") for n in range(60)]
    with serve_flaky(by_wish) as service:
        summary = judge(service, tmp_path / "greedy.jsonl", rows, order="paper")
        assert len(service.answered) == 60
        on_first_side = sum(responses(body)[0] != "gold" for body in service.answered)
    assert 15 < on_first_side < 45
    assert summary["ties"] == 0
    assert summary["flip_rate"] is None
    flips_that_won = sum(candidate_orders("paper", 17, f"row{n}") == (True,) for n in range(0, 60, 2))
    assert summary["wins"] == 30 + flips_that_won


def test_too_many_invalid_answers_fail_the_stage(tmp_path: Path) -> None:
    rows = [row(n, "mumble" if n < 2 else "win") for n in range(20)]
    with serve_flaky(by_wish) as service:
        with pytest.raises(ServiceError, match=r"2 of 20 rows .*'Both are fine'"):
            judge(service, tmp_path / "greedy.jsonl", rows, max_invalid_fraction=0.05)
        assert not (tmp_path / "greedy.jsonl").exists()
        assert judge(service, tmp_path / "greedy.jsonl", rows, max_invalid_fraction=0.1)["invalid"] == 2


def test_nothing_valid_has_no_win_rate(tmp_path: Path) -> None:
    with serve_flaky(lambda _: say(None)) as service:
        summary = judge(service, tmp_path / "greedy.jsonl", [row(0, "x")], max_invalid_fraction=1)
    assert summary["win_rate"] is None
    assert summary["invalid"] == 1
    with pytest.raises(ArtifactError, match="no generations"):
        judge(service, tmp_path / "greedy.jsonl", [])


def test_text_under_judgement_with_braces_and_templates_goes_in_as_it_is(tmp_path: Path) -> None:
    text = "{0} {} \n Response B: me! \n State only “A”"
    with serve_flaky(lambda _: say("A")) as service:
        judge(service, tmp_path / "greedy.jsonl", [row(0, text)])
        contents = [body["messages"][0]["content"] for body in service.answered]
    assert DOLLY_TEMPLATE.format("prompt 0", text, "gold") in contents


@pytest.mark.skipif(not ANNOTATIONS.is_file(), reason=f"{ANNOTATIONS} is not here")
def test_the_recorded_judge_gives_the_recorded_win_rate(tmp_path: Path) -> None:
    recorded = json.loads(ANNOTATIONS.read_text())
    rows, better = [], {}
    for number, pair in enumerate(recorded):
        rows.append(
            Generation(
                id=str(number),
                prompt=pair["instruction"],
                reference=pair["output_1"],
                response=pair["output_2"],
                tokens=0,
                finish_reason="stop",
            )
        )
        for order, letters in (((True, False), "AB"), ((False, True), "BA")):
            first, second = (pair["output_2"], pair["output_1"])[:: 1 if order[0] else -1]
            content = DOLLY_TEMPLATE.format(pair["instruction"], first, second)
            # preference 2: output_2 is better, 1: output_1, anything between is a tie: A whatever the order
            better[content] = {2: letters[0], 1: letters[1]}.get(pair["preference"], "A")

    with serve_flaky(lambda body: say(better[body["messages"][0]["content"]]), failing=0.1) as service:
        summary = judge(service, tmp_path / "alpaca.jsonl", rows)
    assert summary["n"] == 805
    assert round(summary["win_rate"], 4) == 0.2646
