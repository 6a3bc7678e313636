"""Refusals, failures and invalid replies of the API of unhelpful negatives."""

import re
import threading
import time

import pytest

from cpo_ray.errors import DataError, ServiceError
from tests.flaky_server import Handler, serve_flaky
from tests.sampling.negatives.unhelpful_api import INVALID, ROWS, chat_reply, different, gold_in, negatives, write


@pytest.mark.parametrize("status", [401, 404])
def test_a_refusal_stops_the_stage_at_once_and_names_the_status(tmp_path, status):
    with serve_flaky(different) as service:
        service.status = status
        with pytest.raises(ServiceError, match=f"HTTP {status}"):
            write(service, tmp_path)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_row_that_the_api_refuses_follows_on_bad_row(tmp_path, monkeypatch, status):
    """For example, a content filter, or a prompt that exceeds the model's context."""
    reply = Handler.reply
    monkeypatch.setattr(Handler, "reply", lambda self, code, body: reply(self, body.pop("status", code), body))

    def refuse_one(body):
        refusal = {"status": status, "error": {"message": "filtered"}}
        return refusal if gold_in(body).startswith("03") else different(body)

    with serve_flaky(refuse_one) as service:
        with pytest.raises(DataError, match=rf"training row {3:016x} and 0 more of 12: .* HTTP {status}: .*filtered"):
            write(service, tmp_path)
        selection, _, _ = write(service, tmp_path, on_bad_row="quarantine")
        assert len(selection.table) == ROWS - 1
        service.status = status
        with pytest.raises(DataError, match=f"and 11 more of 12: .* HTTP {status}"):
            write(service, tmp_path / "other", on_bad_row="quarantine")


@pytest.mark.parametrize("status", [429, 500])
def test_an_api_that_always_fails_stops_the_stage_after_the_retries(tmp_path, status):
    with serve_flaky(different) as service:
        service.status = status
        with pytest.raises(ServiceError, match=f"failed 3 times; the last: HTTP {status}"):
            write(service, tmp_path, retries=2)
        service.status = 0
        assert write(service, tmp_path, retries=2)[1]["asked"] == ROWS  # a second run continues


def test_an_api_that_drops_every_connection_stops_the_stage_after_the_retries(tmp_path):
    with serve_flaky(different, failing=1.0) as service:
        service.rng.choice = lambda _: "drop"
        with pytest.raises(ServiceError, match="failed 2 times; the last: RemoteProtocolError"):
            write(service, tmp_path, retries=1)


def test_an_api_that_hangs_stops_the_stage_after_the_timeout(tmp_path):
    released = threading.Event()

    def hang(_):
        released.wait(5)
        return chat_reply("late")

    with serve_flaky(hang) as service:
        try:
            with pytest.raises(ServiceError, match="failed 1 times; the last: ReadTimeout"):
                write(service, tmp_path, retries=0, timeout_s=0.2)
        finally:
            released.set()


def test_invalid_replies_are_requested_again(tmp_path):
    seen = set()

    def invalid_first(body):
        again = body["seed"] in seen
        seen.add(body["seed"])
        return different(body) if again else INVALID[body["seed"] % len(INVALID)]

    with serve_flaky(invalid_first) as service:
        selection, summary, _ = write(service, tmp_path)
        assert (len(service.answered), summary["asked"]) == (2 * ROWS, ROWS)
        assert summary["answers"] == 2 * ROWS  # an invalid reply may have been billed
    assert all(negatives(selection))


@pytest.mark.parametrize("reply", INVALID, ids=str)
def test_an_api_with_only_invalid_replies_stops_the_stage_and_shows_one(tmp_path, reply):
    with (
        serve_flaky(lambda _: reply) as service,
        pytest.raises(ServiceError, match=r"not chat completions, after 3 attempts: " + re.escape(str(reply)[:20])),
    ):
        write(service, tmp_path, retries=2)


@pytest.mark.parametrize("empty", [None, "", " \n"])
def test_a_row_with_empty_answers_follows_on_bad_row(tmp_path, empty):
    def refuse_one(body):
        return chat_reply(empty) if gold_in(body).startswith("03") else different(body)

    with serve_flaky(refuse_one) as service:
        with pytest.raises(DataError, match=rf"training row {3:016x} and 0 more of 12: no unhelpful response"):
            write(service, tmp_path, redraws=2)
        assert len(service.answered) == ROWS + 2
        selection, summary, _ = write(service, tmp_path, redraws=2, on_bad_row="quarantine")
        assert summary["asked"] == 0
    assert f"{3:016x}" not in selection.table["id"].to_pylist()
    assert list(selection.left_out.values()) == [1]


def test_an_error_is_raised_if_no_row_has_an_answer(tmp_path):
    with (
        serve_flaky(lambda _: chat_reply(None)) as service,
        pytest.raises(DataError, match="and 11 more of 12: no unhelpful"),
    ):
        write(service, tmp_path, redraws=0, on_bad_row="quarantine")


def test_the_rate_limit_includes_retries(tmp_path):
    with serve_flaky(different, failing=0.5) as service:
        began = time.monotonic()
        write(service, tmp_path, requests_per_minute=60 / 0.02, retries=20)
        requests = len(service.answered) + len(service.failures)
    assert time.monotonic() - began >= 0.02 * (requests - 1)
