"""The caps on the cost of unhelpful negatives."""

import pytest

from cpo_ray.config import UnhelpfulConfig
from cpo_ray.errors import ConfigError, ServiceError
from cpo_ray.sampling.negatives.budget import Budget, Usage
from cpo_ray.sampling.negatives.unhelpful import TEMPLATE
from tests.flaky_server import serve_flaky
from tests.sampling.negatives.unhelpful_api import INVALID, ROWS, chat_reply, different, gold_in, negatives, rows, write


def test_refused_requests_do_not_use_the_budget(tmp_path):
    """Refusals are free: the requests of three refused rows are left for three answers that repeat."""
    first = set()

    def repeat_three(body):
        gold = gold_in(body)
        if gold < "06" and gold not in first:
            first.add(gold)
            return chat_reply(gold)
        return different(body)

    with serve_flaky(repeat_three) as service:
        service.refuse = lambda body: 400 if gold_in(body) < "03" else 0
        selection, summary, _ = write(service, tmp_path, max_requests=12, on_bad_row="quarantine", concurrency=1)
    assert (len(selection.table), summary["answers"]) == (9, 12)


@pytest.mark.parametrize(
    ("caps", "words"),
    [
        ({"max_requests": ROWS - 1}, r"12 requests, .* may exceed sampling\.unhelpful\.max_requests 11"),
        ({"max_total_tokens": 200}, r"may exceed sampling\.unhelpful\.max_total_tokens 200\. Raise it, or lower"),
        ({"max_price": 1e-4, "input_price": 1, "output_price": 2}, r"in price to send, .*max_price 0\.0001"),
    ],
)
def test_an_estimate_above_a_cap_raises_an_error_before_the_first_request(tmp_path, capsys, caps, words):
    with serve_flaky(different) as service:
        with pytest.raises(ConfigError, match=words):
            write(service, tmp_path, **caps)
        assert service.answered == []
    assert "0 on disk, 12 requests" in capsys.readouterr().out


@pytest.mark.parametrize("concurrency", [1, 8])
def test_caps_hold_during_a_run_and_across_restarts(tmp_path, concurrency):
    """Every answer equals the gold, so each row needs four requests."""
    with serve_flaky(lambda body: chat_reply(gold_in(body))) as service:
        for _ in range(2):
            with pytest.raises((ServiceError, ConfigError), match=r"exceed sampling\.unhelpful\.max_requests 20"):
                write(service, tmp_path, max_requests=20, concurrency=concurrency)
            assert len(service.answered) == 20
        selection, summary, _ = write(service, tmp_path, max_requests=4 * ROWS)
        assert summary["answers"] == len(service.answered) == 4 * ROWS
    assert negatives(selection) == [[gold] for gold in selection.table["response_ids"].to_pylist()]


def test_the_token_count_of_the_api_is_used(tmp_path):
    greedy = {"prompt_tokens": 900, "completion_tokens": 100}
    with serve_flaky(lambda body: different(body) | {"usage": greedy}) as service:
        with pytest.raises(
            ServiceError, match=r"could exceed sampling\.unhelpful\.max_total_tokens 5,000; 5 requests, 5,000"
        ):
            write(service, tmp_path, max_total_tokens=5000, concurrency=1)
        assert len(service.answered) == 5


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": "many"}, {"prompt_tokens": -5, "completion_tokens": 1}])
def test_without_a_valid_count_from_the_api_tokens_are_counted_here(tmp_path, usage):
    with serve_flaky(lambda body: chat_reply("1234", usage)) as service:
        _, summary, _ = write(service, tmp_path)
    assert summary["input_tokens"] == sum(
        len(TEMPLATE.format("p", text)) for text in rows().table["response"].to_pylist()
    )
    assert summary["output_tokens"] == 5 * ROWS


def test_prices_are_computed_and_capped():
    config = UnhelpfulConfig(input_price=0.5, output_price=1.5, max_price=1)
    budget = Budget(config, [Usage(10, 400_000, 200_000)])
    assert budget.describe(budget.spent) == "10 requests, 600,000 tokens, 0.50 in price"
    budget.reserve(Usage(1, 400_000, 200_000))
    with pytest.raises(ServiceError, match="max_price 1; 10 requests"):
        budget.reserve(Usage(1, 1, 1))
    budget.settle(Usage(1, 400_000, 200_000), Usage(1, 4, 2))
    budget.reserve(Usage(1, 1, 1))
    assert Budget(UnhelpfulConfig(), []).price(Usage(1, 1, 1)) is None


def test_the_caps_include_invalid_replies_across_restarts(tmp_path):
    """An invalid reply may have been billed."""
    with serve_flaky(lambda _: INVALID[2]) as service:
        for ends in ("not chat completions", "not chat completions", "6 requests, .* spent already: .*max_requests 17"):
            with pytest.raises((ServiceError, ConfigError), match=ends):
                write(service, tmp_path, max_requests=17, retries=2, concurrency=1)
        assert len(service.answered) == 6
