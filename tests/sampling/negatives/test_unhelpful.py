"""Unhelpful negatives, requested from a real HTTP server that fails."""

import pytest

from cpo_ray.artifacts import Journal
from cpo_ray.errors import ConfigError
from cpo_ray.records import SCORED_GROUP_SCHEMA
from cpo_ray.sampling.negatives.unhelpful import TEMPLATE
from tests.flaky_server import KEY, serve_flaky
from tests.sampling.example_rows import EOS, draw, encode
from tests.sampling.negatives.unhelpful_api import ROWS, chat_reply, different, gold_in, negatives, rows, write


def test_the_template_is_the_one_of_the_paper():
    assert TEMPLATE.format("{Q}", "{}") == (
        "Given the ground truth instruction and response, can you generate a not helpful response?\n Instruction: {Q} \n"
        " Response: {} \n Not helpful response:"
    )


def test_answers_become_candidates_of_the_groups(tmp_path):
    with serve_flaky(different) as service:
        selection, summary, config = write(service, tmp_path, count=2)
    assert len(service.answered) == 2 * ROWS
    body = service.answered[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("some-llm", 1.0, 8)
    assert body["messages"] == [{"role": "user", "content": TEMPLATE.format("p", gold_in(body))}]
    assert (summary["asked"], summary["answers"], summary["input_tokens"], summary["output_tokens"]) == (
        24,
        24,
        240,
        96,
    )
    groups = draw(selection.table, 0, config)["groups"]
    for group, response, drawn in zip(
        groups, selection.table["response"].to_pylist(), negatives(selection), strict=False
    ):
        assert group["candidate_kind"] == ["gold", "unhelpful", "unhelpful", "batch"]
        assert group["candidate_ids"][1:3] == drawn
        assert all(tokens[:3] == encode(response[1:4])[:-1] and tokens[-1] == EOS for tokens in drawn)
        assert drawn[0] != drawn[1]
    assert set(group) == set(SCORED_GROUP_SCHEMA.names)


def test_no_request_is_paid_for_twice_and_failures_do_not_change_the_result(tmp_path):
    written = []
    for name, failing, concurrency in (("a", 0.0, 1), ("b", 0.4, 8)):
        with serve_flaky(different, failing=failing) as service:
            selection, summary, _ = write(service, tmp_path / name, concurrency=concurrency, retries=20)
            assert summary["asked"] == len(service.answered) == ROWS
            assert set(service.failures) == ({"429", "500", "drop"} if failing else set())
            again, summary, _ = write(service, tmp_path / name)
            assert (summary["asked"], summary["answers"]) == (0, ROWS)
            assert len(service.answered) == ROWS
            assert negatives(again) == negatives(selection)
        written.append(negatives(selection))
    assert written[0] == written[1]


def test_a_killed_run_requests_only_the_missing_answers(tmp_path):
    with serve_flaky(different) as service:
        whole, _, _ = write(service, tmp_path)
        journal = tmp_path / "unhelpful.answers"
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(b"".join(lines[:5]) + lines[5][:20])  # the last line is cut
        service.answered.clear()
        again, summary, _ = write(service, tmp_path)
        assert len(service.answered) == summary["asked"] == ROWS - 5
    assert negatives(again) == negatives(whole)


def test_a_repeated_answer_is_requested_again_then_kept_and_counted(tmp_path):
    texts = ["same old", "new"]

    def parrot(body):
        return chat_reply(gold_in(body) if gold_in(body) == "same old" else "ok")

    with serve_flaky(parrot) as service:
        selection, summary, config = write(service, tmp_path, rows(texts), count=2, redraws=2)
    assert negatives(selection) == [[encode("same old")] * 2, [encode("ok")] * 2]
    assert selection.table["unhelpful_redraws"].to_pylist() == [4, 2]
    assert summary["asked"] == 3 + 3 + 1 + 3
    (work,) = [work for work in draw(selection.table, 0, config)["work"] if work["kind"] == "unhelpful"]
    assert work["redraws"] == 6


def test_an_answer_that_the_api_cut_has_no_eos(tmp_path):
    """Also when it is read from the journal, and when its tokens are fewer here than there."""
    for _ in range(2):
        with serve_flaky(lambda _: chat_reply("half a", finish_reason="length")) as service:
            selection, _, _ = write(service, tmp_path, rows(["some", "more"]), redraws=0)
        assert negatives(selection) == [[encode("half a")[:-1]]] * 2
    with serve_flaky(lambda _: chat_reply("half a")) as service:
        selection, _, _ = write(service, tmp_path / "whole", rows(["some", "more"]), redraws=0)
    assert negatives(selection) == [[encode("half a")]] * 2


def test_the_key_is_required_and_never_printed_or_stored(tmp_path, monkeypatch, capsys):
    with serve_flaky(different) as service:
        write(service, tmp_path)
        assert KEY not in capsys.readouterr().out + (tmp_path / "unhelpful.answers").read_text()
        monkeypatch.delenv("CPO_RAY_UNHELPFUL_KEY")
        with pytest.raises(ConfigError, match="needs its key in the environment variable CPO_RAY_UNHELPFUL_KEY"):
            write(service, tmp_path)


def test_no_seed_is_sent_with_seeded_false(tmp_path):
    with serve_flaky(lambda body: chat_reply(f"no{len(gold_in(body))}")) as service:
        selection, _, _ = write(service, tmp_path, seeded=False)
        assert not any("seed" in body for body in service.answered)
    assert all(negatives(selection))


def test_the_journal_is_sorted_so_equal_answers_make_equal_files(tmp_path):
    for name, concurrency in (("a", 1), ("b", 6)):
        with serve_flaky(different) as service:
            write(service, tmp_path / name, concurrency=concurrency)
            with Journal(tmp_path / name / "unhelpful.answers") as journal:
                assert list(journal.entries) == sorted(journal.entries)
