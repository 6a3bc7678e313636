"""The content of chat messages."""

import re
from typing import Any

import pytest

from tests.serving.stub_engine import post


def chat(**message: Any) -> dict[str, Any]:
    return {"model": "a", "messages": [{"role": "user", **message}]}


def part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


@pytest.mark.parametrize(
    ("message", "content"),
    [
        ({"type": "text", "content": "hi"}, "hi"),
        ({"content": [part("one")]}, "one"),
        ({"content": [part("one"), part(""), part("two")], "name": "me"}, "one\n\ntwo"),
    ],
)
def test_text_parts_of_a_message_are_joined(message: Any, content: str) -> None:
    answer, engine = post(chat(**message), "/v1/chat/completions")
    assert answer.status_code == 200
    named = {"name": "me"} if "name" in message else {}
    assert engine.bodies == [{"model": "a", "messages": [{"role": "user", "content": content} | named]}]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"content": [part("x"), {"type": "image_url", "image_url": {"url": "http://h/i.png"}}]}, "part 1 .*image_url"),
        ({"content": [{"type": "input_audio", "input_audio": {}}]}, "part 0 .*input_audio"),
        ({"content": [{"type": "x" * 1000, "text": "y"}]}, "part 0 "),
        ({"content": [{"text": "x"}]}, "part 0 "),
        ({"content": [{"type": "text"}]}, "part 0 "),
        ({"content": [{"type": "text", "text": 5}]}, "part 0 "),
        ({"content": [part("x") | {"cache_control": {}}]}, "part 0 .*cache_control"),
        ({"content": ["x"]}, "part 0 "),
        ({"content": []}, "no part"),
        ({"content": [part("x")] * 300}, "256"),
        ({"content": part("x")}, "content"),
        ({"content": None}, "content"),
        ({"type": "image", "content": "hi"}, "type"),
        ({"content": "hi", "tool_calls": []}, "tool_calls: Extra inputs are not permitted"),
        ({"content": "hi", "reasoning": "x"}, "reasoning: Extra inputs are not permitted"),
    ],
)
def test_other_parts_and_keys_of_a_message_are_refused_by_name(message: Any, said: str) -> None:
    answer, engine = post(chat(**message), "/v1/chat/completions")
    assert (answer.status_code, engine.bodies) == (400, [])
    error = answer.json()["error"]
    assert error["param"].startswith("messages.0.")
    assert re.search(said, error["message"]), error
    assert len(error["message"]) < 200
