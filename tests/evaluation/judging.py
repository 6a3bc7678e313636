"""A judge that answers as a test wishes, and what it is asked."""

from pathlib import Path
from typing import Any

from cpo_ray.config import JudgeConfig
from cpo_ray.evaluation.judge import judge_answers
from cpo_ray.records import Generation
from tests.flaky_server import KEY, Service

ONE_URL = "http://one-judge/v1"  # the URL in the configuration; the server of a test has another


def row(n: int, response: str, reference: str = "gold") -> Generation:
    return Generation(
        id=f"row{n}", prompt=f"prompt {n}", reference=reference, response=response, tokens=1, finish_reason="stop"
    )


def say(text: str | None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}


def responses(body: dict[str, Any]) -> tuple[str, str]:
    content = body["messages"][0]["content"]
    first, second = content.split(" \n Response A: ")[1].split(" \n Response B: ")
    return first, second.split(" \n State only")[0]


def follow_instruction(body: dict[str, Any]) -> dict[str, Any]:
    """A judge that follows the candidate's text: win, lose, flip (always A); otherwise it gives no verdict."""
    first, second = responses(body)
    instruction, letter = (second, "B") if first == "gold" else (first, "A")
    other = "B" if letter == "A" else "A"
    return say({"win": letter, "lose": other, "flip": "A"}.get(instruction, "Both are fine"))


def settings(service: Service, **config: Any) -> JudgeConfig:
    return JudgeConfig(**({"url": service.url, "model": "some-judge", "max_invalid_fraction": 0.5} | config))


def judge(service: Service, out: Path, rows: list[Generation], **config: Any) -> dict[str, Any]:
    return judge_answers(rows, service.url, KEY, settings(service, **config), 17, out, lambda: None)
