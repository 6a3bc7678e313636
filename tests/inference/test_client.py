"""Malformed answers and keys. Retries are tested with the client's users (generation, judge, unhelpful negatives)."""

import asyncio

import pytest

from cpo_ray.errors import ConfigError, ServiceError
from cpo_ray.inference import client
from cpo_ray.inference.client import Client, InvalidAnswerError, read_key
from tests.flaky_server import KEY, serve_flaky


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(client, "FIRST_WAIT_S", 0.0002)


def ask(service, retries=1, **options):
    async def once():
        async with Client(service.url, KEY, retries) as api:
            return await api.post("/chat/completions", {}, **options)

    return asyncio.run(once())


DEEP = b"[" * 200_000


@pytest.mark.parametrize(
    "garbage", [b"\xff\xfe!", b"", b"<html>", b"[1]", DEEP], ids=["bytes", "none", "html", "list", "deep"]
)
def test_an_answer_that_is_not_a_json_object_is_retried_then_raised(garbage):
    answers = [garbage, {"fine": 1}]
    with serve_flaky(lambda _: answers.pop(0)) as service:
        assert ask(service) == {"fine": 1}
    with (
        serve_flaky(lambda _: garbage) as service,
        pytest.raises(ServiceError, match=r"failed 2 times; the last: .*answer"),
    ):
        ask(service)


def test_a_check_makes_the_client_retry_and_names_the_last_answer():
    def check(answer):
        if "error" in answer:
            raise InvalidAnswerError(f"no choice: {answer}")

    answers = [{"error": "busy"}, {"fine": 1}]
    with serve_flaky(lambda _: answers.pop(0)) as service:
        assert ask(service, check=check) == {"fine": 1}
    with (
        serve_flaky(lambda _: {"error": "busy"}) as service,
        pytest.raises(ServiceError, match=r"failed 2 times; the last: no choice: \{'error': 'busy'\}"),
    ):
        ask(service, check=check)


def test_lone_surrogates_are_replaced():
    with serve_flaky(lambda _: b'{"text": "a\\ud800b \\ud83d\\ude00"}') as service:
        assert ask(service) == {"text": "a?b \N{GRINNING FACE}"}


@pytest.mark.parametrize("around", ["\n", "\r\n", " "])
def test_a_key_is_stripped(monkeypatch, around):
    monkeypatch.setenv("A_KEY", f"{around}{KEY}{around}")
    assert read_key("A_KEY") == KEY


@pytest.mark.parametrize("key", ["secret\nword", "secr\u00e9t", "secret\x7f"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(monkeypatch, key):
    monkeypatch.setenv("A_KEY", key)
    with pytest.raises(ConfigError, match="environment variable A_KEY holds characters") as raised:
        read_key("A_KEY")
    assert "secr" not in str(raised.value)


def test_a_missing_key_is_empty(monkeypatch):
    monkeypatch.delenv("A_KEY", raising=False)
    assert read_key("A_KEY") == ""
