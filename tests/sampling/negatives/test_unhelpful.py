"""Unhelpful negatives against a real HTTP server that fails, and what they may cost."""

import re
import threading
import time

import pytest

from cpo_ray.artifacts import Journal
from cpo_ray.config import UnhelpfulConfig
from cpo_ray.errors import ConfigError, DataError, ServiceError
from cpo_ray.inference import client
from cpo_ray.records import GROUP_SCHEMA
from cpo_ray.sampling.negatives.budget import Budget, Usage
from cpo_ray.sampling.negatives.unhelpful import TEMPLATE, add_unhelpful
from cpo_ray.sampling.selection import Selection
from tests.flaky_server import KEY, Handler, serve_flaky
from tests.sampling.made_rows import EOS, draw, encode, make_config, make_table

ROWS = 12


class Tokenizer:
    """A token per letter; `<eos>` in a text stays text."""

    eos_token_id = EOS

    def __call__(self, texts, add_special_tokens, split_special_tokens, verbose):
        assert (add_special_tokens, split_special_tokens) == (False, True)
        return {"input_ids": [[1 + ord(letter) % 90 for letter in text] for text in texts]}


@pytest.fixture(autouse=True)
def _key_and_short_waits(monkeypatch):
    monkeypatch.setattr(client, "FIRST_WAIT_S", 0.0002)
    monkeypatch.setenv("CPO_RAY_UNHELPFUL_KEY", KEY)


def say(text, usage=None):
    message = {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}
    return message | ({"usage": usage} if usage else {})


def asked_about(body):
    """The ground truth that stands in a question."""
    return re.search(r" Response: (.*?) \n Not helpful", body["messages"][0]["content"], re.DOTALL)[1]


def not_that(body):
    """Another answer for every seed, and none that repeats."""
    return say(f" {asked_about(body)[1:4]}{body['seed'] % 9973:04d}\n", {"prompt_tokens": 10, "completion_tokens": 4})


def rows(texts=None):
    texts = texts or [f"{number:02d} is it" for number in range(ROWS)]
    table = make_table([encode(text) for text in texts])
    column = table.column_names.index("response")
    return Selection(table.set_column(column, "response", [texts]), 16, 0, {})


def write(service, folder, selection=None, *, count=1, on_bad_row="error", redraws=3, **settings):
    config = make_config(
        negatives={"unhelpful": count, "batch": 1, "meanfield": 0, "truncation": 0},
        unhelpful={"url": service.url, "model": "some-llm"} | settings,
        on_bad_row=on_bad_row,
        redraws=redraws,
    )
    selection, summary = add_unhelpful(selection or rows(), config, Tokenizer(), folder / "unhelpful.answers")
    return selection, summary, config


def negatives(selection):
    return selection.table["unhelpful"].to_pylist()


def test_the_template_is_the_papers():
    assert TEMPLATE.format("{Q}", "{}") == (
        "Given the ground truth instruction and response, can you generate a not helpful response?\n Instruction: {Q} \n"
        " Response: {} \n Not helpful response:"
    )


def test_answers_become_candidates_of_the_groups(tmp_path):
    with serve_flaky(not_that) as service:
        selection, summary, config = write(service, tmp_path, count=2)
    assert len(service.answered) == 2 * ROWS
    body = service.answered[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("some-llm", 1.0, 8)
    assert body["messages"] == [{"role": "user", "content": TEMPLATE.format("p", asked_about(body))}]
    assert (summary["asked"], summary["answers"], summary["input_tokens"], summary["output_tokens"]) == (
        24,
        24,
        240,
        96,
    )
    groups = draw(selection.table, 0, config)["groups"]
    for group, response, made in zip(
        groups, selection.table["response"].to_pylist(), negatives(selection), strict=False
    ):
        assert group["candidate_kind"] == ["gold", "unhelpful", "unhelpful", "batch"]
        assert group["candidate_ids"][1:3] == made
        assert all(tokens[:3] == encode(response[1:4])[:-1] and tokens[-1] == EOS for tokens in made)
        assert made[0] != made[1]
    assert set(group) == set(GROUP_SCHEMA.names)


def test_nothing_is_asked_twice_and_failures_change_nothing(tmp_path):
    written = []
    for name, failing, concurrency in (("a", 0.0, 1), ("b", 0.4, 8)):
        with serve_flaky(not_that, failing=failing) as service:
            selection, summary, _ = write(service, tmp_path / name, concurrency=concurrency, retries=20)
            assert summary["asked"] == len(service.answered) == ROWS
            assert set(service.failures) == ({"429", "500", "drop"} if failing else set())
            again, summary, _ = write(service, tmp_path / name)
            assert (summary["asked"], summary["answers"]) == (0, ROWS)
            assert len(service.answered) == ROWS
            assert negatives(again) == negatives(selection)
        written.append(negatives(selection))
    assert written[0] == written[1]


def test_a_killed_run_asks_only_for_what_is_missing(tmp_path):
    with serve_flaky(not_that) as service:
        whole, _, _ = write(service, tmp_path)
        journal = tmp_path / "unhelpful.answers"
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(b"".join(lines[:5]) + lines[5][:20])  # torn
        service.answered.clear()
        again, summary, _ = write(service, tmp_path)
        assert len(service.answered) == summary["asked"] == ROWS - 5
    assert negatives(again) == negatives(whole)


@pytest.mark.parametrize("status", [401, 404])
def test_a_refusal_ends_it_at_once_and_names_the_status(tmp_path, status):
    with serve_flaky(not_that) as service:
        service.status = status
        with pytest.raises(ServiceError, match=f"HTTP {status}"):
            write(service, tmp_path)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_row_that_the_api_will_not_answer_about_follows_on_bad_row(tmp_path, monkeypatch, status):
    """A content filter, say, or a prompt beyond the model's context."""
    reply = Handler.reply
    monkeypatch.setattr(Handler, "reply", lambda self, code, body: reply(self, body.pop("status", code), body))

    def refuse_one(body):
        refusal = {"status": status, "error": {"message": "filtered"}}
        return refusal if asked_about(body).startswith("03") else not_that(body)

    with serve_flaky(refuse_one) as service:
        with pytest.raises(DataError, match=rf"training row {3:016x} and 0 more of 12: .* HTTP {status}: .*filtered"):
            write(service, tmp_path)
        selection, _, _ = write(service, tmp_path, on_bad_row="quarantine")
        assert len(selection.table) == ROWS - 1
        service.status = status
        with pytest.raises(DataError, match=f"and 11 more of 12: .* HTTP {status}"):
            write(service, tmp_path / "other", on_bad_row="quarantine")


@pytest.mark.parametrize("status", [429, 500])
def test_an_api_that_keeps_failing_ends_it_after_the_retries(tmp_path, status):
    with serve_flaky(not_that) as service:
        service.status = status
        with pytest.raises(ServiceError, match=f"failed 3 times; the last: HTTP {status}"):
            write(service, tmp_path, retries=2)
        service.status = 0
        assert write(service, tmp_path, retries=2)[1]["asked"] == ROWS  # the same command goes on


def test_an_api_that_answers_nothing_at_all_ends_it_after_the_retries(tmp_path):
    with serve_flaky(not_that, failing=1.0) as service:
        service.rng.choice = lambda _: "drop"
        with pytest.raises(ServiceError, match="failed 2 times; the last: RemoteProtocolError"):
            write(service, tmp_path, retries=1)


def test_an_api_that_hangs_ends_it_after_the_timeout(tmp_path):
    released = threading.Event()

    def hang(_):
        released.wait(5)
        return say("late")

    with serve_flaky(hang) as service:
        try:
            with pytest.raises(ServiceError, match="failed 1 times; the last: ReadTimeout"):
                write(service, tmp_path, retries=0, timeout_s=0.2)
        finally:
            released.set()


GARBAGE = [{}, {"choices": []}, {"error": {"message": "overloaded"}}, {"choices": [{"message": {"content": 3}}]}]


def test_garbage_is_asked_for_again(tmp_path):
    met = set()

    def garbage_first(body):
        met_before = body["seed"] in met
        met.add(body["seed"])
        return not_that(body) if met_before else GARBAGE[body["seed"] % len(GARBAGE)]

    with serve_flaky(garbage_first) as service:
        selection, summary, _ = write(service, tmp_path)
        assert (len(service.answered), summary["asked"]) == (2 * ROWS, ROWS)
        assert summary["answers"] == 2 * ROWS  # a reply that says nothing may have been billed
    assert all(negatives(selection))


def test_the_caps_count_garbage_over_restarts(tmp_path):
    """It may have been billed, whatever it says."""
    with serve_flaky(lambda _: GARBAGE[2]) as service:
        for ends in ("no chat completions", "no chat completions", "6 requests, .* spent already: .*max_requests 17"):
            with pytest.raises((ServiceError, ConfigError), match=ends):
                write(service, tmp_path, max_requests=17, retries=2, concurrency=1)
        assert len(service.answered) == 6


@pytest.mark.parametrize("garbage", GARBAGE, ids=str)
def test_an_api_that_answers_only_garbage_ends_it_and_shows_some(tmp_path, garbage):
    with (
        serve_flaky(lambda _: garbage) as service,
        pytest.raises(ServiceError, match=r"no chat completions, after 3 tries: " + re.escape(str(garbage)[:20])),
    ):
        write(service, tmp_path, retries=2)


def test_what_repeats_is_asked_for_again_then_kept_and_counted(tmp_path):
    texts = ["same old", "new"]

    def parrot(body):
        return say(asked_about(body) if asked_about(body) == "same old" else "ok")

    with serve_flaky(parrot) as service:
        selection, summary, config = write(service, tmp_path, rows(texts), count=2, redraws=2)
    assert negatives(selection) == [[encode("same old")] * 2, [encode("ok")] * 2]
    assert selection.table["unhelpful_redraws"].to_pylist() == [4, 2]
    assert summary["asked"] == 3 + 3 + 1 + 3
    (work,) = [work for work in draw(selection.table, 0, config)["work"] if work["kind"] == "unhelpful"]
    assert work["redraws"] == 6


@pytest.mark.parametrize("empty", [None, "", " \n"])
def test_a_row_with_empty_answers_follows_on_bad_row(tmp_path, empty):
    def refuse_one(body):
        return say(empty) if asked_about(body).startswith("03") else not_that(body)

    with serve_flaky(refuse_one) as service:
        with pytest.raises(DataError, match=rf"training row {3:016x} and 0 more of 12: no unhelpful response"):
            write(service, tmp_path, redraws=2)
        assert len(service.answered) == ROWS + 2
        selection, summary, _ = write(service, tmp_path, redraws=2, on_bad_row="quarantine")
        assert summary["asked"] == 0
    assert f"{3:016x}" not in selection.table["id"].to_pylist()
    assert list(selection.left_out.values()) == [1]


def test_when_no_row_has_an_answer_nothing_is_made(tmp_path):
    with serve_flaky(lambda _: say(None)) as service, pytest.raises(DataError, match="and 11 more of 12: no unhelpful"):
        write(service, tmp_path, redraws=0, on_bad_row="quarantine")


def test_rows_that_are_refused_leave_the_budget_to_others(tmp_path):
    """Refusals cost nothing: three of twelve rows leave room for three answers that have to be drawn again."""
    first = set()

    def repeat_three(body):
        about = asked_about(body)
        if about < "06" and about not in first:
            first.add(about)
            return say(about)
        return not_that(body)

    with serve_flaky(repeat_three) as service:
        service.refuse = lambda body: 400 if asked_about(body) < "03" else 0
        selection, summary, _ = write(service, tmp_path, max_requests=12, on_bad_row="quarantine", concurrency=1)
    assert (len(selection.table), summary["answers"]) == (9, 12)


def test_the_key_is_asked_for_and_told_nobody(tmp_path, monkeypatch, capsys):
    with serve_flaky(not_that) as service:
        write(service, tmp_path)
        assert KEY not in capsys.readouterr().out + (tmp_path / "unhelpful.answers").read_text()
        monkeypatch.delenv("CPO_RAY_UNHELPFUL_KEY")
        with pytest.raises(ConfigError, match="needs its key in the environment variable CPO_RAY_UNHELPFUL_KEY"):
            write(service, tmp_path)


def test_a_seed_is_not_sent_where_the_api_refuses_it(tmp_path):
    with serve_flaky(lambda body: say(f"no{len(asked_about(body))}")) as service:
        selection, _, _ = write(service, tmp_path, seeded=False)
        assert not any("seed" in body for body in service.answered)
    assert all(negatives(selection))


@pytest.mark.parametrize(
    ("caps", "words"),
    [
        ({"max_requests": ROWS - 1}, r"12 requests, .* may exceed sampling\.unhelpful\.max_requests 11"),
        ({"max_total_tokens": 200}, r"may exceed sampling\.unhelpful\.max_total_tokens 200\. Raise it, or lower"),
        ({"max_price": 1e-4, "input_price": 1, "output_price": 2}, r"in price to ask, .*max_price 0\.0001"),
    ],
)
def test_an_estimate_beyond_a_cap_is_refused_before_the_first_request(tmp_path, capsys, caps, words):
    with serve_flaky(not_that) as service:
        with pytest.raises(ConfigError, match=words):
            write(service, tmp_path, **caps)
        assert service.answered == []
    assert "0 on disk, 12 requests" in capsys.readouterr().out


@pytest.mark.parametrize("concurrency", [1, 8])
def test_caps_hold_while_answers_come_and_over_restarts(tmp_path, concurrency):
    """Every answer repeats the truth, so each row would ask four times."""
    with serve_flaky(lambda body: say(asked_about(body))) as service:
        for _ in range(2):
            with pytest.raises((ServiceError, ConfigError), match=r"exceed sampling\.unhelpful\.max_requests 20"):
                write(service, tmp_path, max_requests=20, concurrency=concurrency)
            assert len(service.answered) == 20
        selection, summary, _ = write(service, tmp_path, max_requests=4 * ROWS)
        assert summary["answers"] == len(service.answered) == 4 * ROWS
    assert negatives(selection) == [[gold] for gold in selection.table["response_ids"].to_pylist()]


def test_the_apis_own_count_of_tokens_is_what_counts(tmp_path):
    greedy = {"prompt_tokens": 900, "completion_tokens": 100}
    with serve_flaky(lambda body: not_that(body) | {"usage": greedy}) as service:
        with pytest.raises(
            ServiceError, match=r"could exceed sampling\.unhelpful\.max_total_tokens 5,000; 5 requests, 5,000"
        ):
            write(service, tmp_path, max_total_tokens=5000, concurrency=1)
        assert len(service.answered) == 5


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": "many"}, {"prompt_tokens": -5, "completion_tokens": 1}])
def test_without_a_count_of_its_own_ours_serves(tmp_path, usage):
    with serve_flaky(lambda body: say("1234", usage)) as service:
        _, summary, _ = write(service, tmp_path)
    assert summary["input_tokens"] == sum(
        len(TEMPLATE.format("p", text)) for text in rows().table["response"].to_pylist()
    )
    assert summary["output_tokens"] == 5 * ROWS


def test_a_price_is_told():
    config = UnhelpfulConfig(input_price=0.5, output_price=1.5, max_price=1)
    budget = Budget(config, [Usage(10, 400_000, 200_000)])
    assert budget.describe(budget.spent) == "10 requests, 600,000 tokens, 0.50 in price"
    budget.reserve(Usage(1, 400_000, 200_000))
    with pytest.raises(ServiceError, match="max_price 1; 10 requests"):
        budget.reserve(Usage(1, 1, 1))
    budget.settle(Usage(1, 400_000, 200_000), Usage(1, 4, 2))
    budget.reserve(Usage(1, 1, 1))
    assert Budget(UnhelpfulConfig(), []).price(Usage(1, 1, 1)) is None


def test_tries_after_a_failure_are_spaced_too(tmp_path):
    with serve_flaky(not_that, failing=0.5) as service:
        began = time.monotonic()
        write(service, tmp_path, requests_per_minute=60 / 0.02, retries=20)
        requests = len(service.answered) + len(service.failures)
    assert time.monotonic() - began >= 0.02 * (requests - 1)


def test_the_journal_is_sorted_so_equal_answers_make_equal_files(tmp_path):
    for name, concurrency in (("a", 1), ("b", 6)):
        with serve_flaky(not_that) as service:
            write(service, tmp_path / name, concurrency=concurrency)
            with Journal(tmp_path / name / "unhelpful.answers") as journal:
                assert list(journal.entries) == sorted(journal.entries)
