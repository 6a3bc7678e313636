"""What counts as a judge's answer."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cpo_ray.config import JudgeConfig
from cpo_ray.errors import ServiceError
from cpo_ray.evaluation.judge import estimate_cost, parse_answer
from tests.evaluation.judging import follow_instruction, judge, row, say, settings
from tests.flaky_server import serve_flaky


@pytest.mark.parametrize("text", [
    "A", " A\n", '"A"', "“A”", "A.", "“A”.", "'A'", "**A**", "(A)", "[[A]]", "`A`", '"A".', "**A.**", "A)", "__A__",
    "<think>B is shorter. B?</think>A", "<think>\nLet me see: B\n</think>\n\n**A**", "no tag opens</think>\nA",
    "<think>a</think> B <think>b</think> [[A]]",
])  # fmt: skip
def test_a_valid_answer_is_parsed(text: str) -> None:
    assert parse_answer(text) == "A"
    assert parse_answer(text.translate(str.maketrans("AB", "BA"))) == "B"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "AB",
        "A or B",
        "A B",
        "Response A",
        "C",
        "Neither",
        "A because",
        "A\nB",
        "..A",
        "<think>A",
        "<think>A</think>",
        "A</think>",
        "A <think>because</think>",
        "**A** or **B**",
        "<think>B</think>A, because",
        "()",
        "[[]]",
    ],
)
def test_any_other_text_is_not_an_answer(text: str) -> None:
    assert parse_answer(text) is None


def test_a_reasoning_judge_gets_tokens_to_think_and_no_temperature(tmp_path: Path) -> None:
    def think(body: dict[str, Any]) -> dict[str, Any]:
        assert body["max_completion_tokens"] == 516
        assert not {"max_tokens", "temperature"} & set(body)  # such an API returns 400 for either
        return follow_instruction(body)

    with serve_flaky(think) as service:
        config, out = settings(service, thinking_tokens=500), tmp_path / "greedy.jsonl"
        assert estimate_cost([row(1, "win")], config, 17, out).answer_tokens == 2 * 516
        assert judge(service, out, [row(1, "win")], thinking_tokens=500)["wins"] == 1


def test_what_a_judge_thinks_is_no_answer(tmp_path: Path) -> None:
    def think(body: dict[str, Any]) -> dict[str, Any]:
        letter = follow_instruction(body)["choices"][0]["message"]["content"]
        return say(f"<think>\nA or B? It might be {'B' if letter == 'A' else 'A'}\n</think>\n\n**{letter}**")

    with serve_flaky(think) as service:
        summary = judge(service, tmp_path / "greedy.jsonl", [row(1, "win"), row(2, "lose")], thinking_tokens=500)
    assert [summary[key] for key in ("wins", "losses", "invalid")] == [1, 1, 0]


CUT: dict[str, Any] = {
    "choices": [{"index": 0, "message": {"role": "assistant", "content": None}, "finish_reason": "length"}]
}


def test_an_answer_without_text_is_requested_again_then_the_row_is_invalid(tmp_path: Path) -> None:
    """A judge that used all its tokens for thinking."""
    out, asked = tmp_path / "greedy.jsonl", Counter[str]()

    def cut(body: dict[str, Any]) -> dict[str, Any]:
        question = body["messages"][0]["content"]
        asked[question] += 1
        return CUT if "prompt 1" in question or asked[question] == 1 else follow_instruction(body)

    with serve_flaky(cut) as service:
        summary = judge(service, out, [row(0, "win"), row(1, "win")], retries=2, thinking_tokens=500)
        assert (summary["wins"], summary["invalid"]) == (1, 1)
        assert sorted(asked.values()) == [2, 2, 3, 3]
        verdicts = [json.loads(line) for line in out.read_text().splitlines()]
        assert "finish_reason: length" in verdicts[1]["answers"][0]
        service.answer = follow_instruction
        assert judge(service, out, [row(0, "win"), row(1, "win")], thinking_tokens=500)["wins"] == 2
        service.answer = lambda _: CUT
        with pytest.raises(ServiceError, match=r"2 of 2 rows .*finish_reason: length.*--thinking-tokens"):
            judge(service, tmp_path / "other.jsonl", [row(8, "win"), row(9, "win")], retries=1)


@pytest.mark.parametrize(
    "answer",
    [{"error": {"message": "overloaded", "code": 502}}, {"choices": []}, {"choices": None}, {"choices": [None]}, {},
     {"choices": [{"index": 0, "finish_reason": "error", "error": {"message": "overloaded"}, "message": {"content": ""}}]}],
)  # fmt: skip
def test_a_200_without_a_choice_is_requested_again_and_quoted(tmp_path: Path, answer: dict[str, Any]) -> None:
    answers = [answer, answer]
    with serve_flaky(lambda body: answers.pop() if answers else follow_instruction(body)) as service:
        assert judge(service, tmp_path / "greedy.jsonl", [row(0, "win")], retries=2)["wins"] == 1
    quoted = re.escape(str(answer)[:40])
    with serve_flaky(lambda _: answer) as service, pytest.raises(ServiceError, match=rf"failed 3 times.*{quoted}"):
        judge(service, tmp_path / "other.jsonl", [row(0, "win")], retries=2)


def test_the_text_parts_of_an_answer_are_its_text(tmp_path: Path) -> None:
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "B"}]}, {"type": "text", "text": "**A**"}]
    with serve_flaky(lambda _: {"choices": [{"message": {"content": parts}, "finish_reason": "stop"}]}) as service:
        judge(service, tmp_path / "greedy.jsonl", [row(0, "win")])
    assert json.loads((tmp_path / "greedy.jsonl").read_text())["answers"] == ["**A**", "**A**"]


def test_a_base_model_cannot_have_thinking_tokens() -> None:
    with pytest.raises(ValueError, match="thinking_tokens needs `api: chat`"):
        JudgeConfig(url="http://127.0.0.1:9/v1", model="base", api="completions", thinking_tokens=500)
