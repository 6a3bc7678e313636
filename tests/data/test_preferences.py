"""Ranked answers in every layout give the same files as their twin; and what cannot be ranked is named."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cpo_ray.artifacts import Summary, read_jsonl, read_table
from cpo_ray.config.loading import parse_config
from cpo_ray.data.answer_layouts import common_prompt, dialogue
from cpo_ray.data.examples import prepare_examples
from cpo_ray.data.preferences import RatedRow, arrange, evenly
from cpo_ray.data.rows import InstructionRow, Place, RatedAnswer
from cpo_ray.errors import ConfigError, DataError
from cpo_ray.records import EXAMPLE_SCHEMA, RANKED_EXAMPLE_SCHEMA
from tests.data.test_layouts import content, write

Row = dict[str, Any]
SIZES = {"train_rows": 14, "validation_rows": 2, "test_rows": 4, "tokenizer": {"vocabulary_size": 320}}
SPLITS = ("train", "validation", "test")
N = 20


def ask(n: int) -> str:
    return f"Name colour {n}."


def texts(n: int) -> list[str]:
    """From the best to the worst."""
    return [f"Colour {n} is blue.", f"Blue, {n} times.", "No idea."]


def turns(*contents: str) -> list[Row]:
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 9, contents, strict=False)]


def answer(*contents: str) -> list[Row]:
    return [{"role": "assistant", "content": text} for text in contents]


def rated(n: int, *order: int) -> list[tuple[str, float]]:
    """(text, score) of the best, the middle and the worst answer, in an order."""
    return [(texts(n)[k], (4.5, 3, 1)[k]) for k in order or (2, 0, 1)]


PAIRS: dict[str, Callable[[int], Row]] = {
    "explicit": lambda n: {"prompt": ask(n), "chosen": texts(n)[0], "rejected": texts(n)[2]},
    "implicit": lambda n: {"chosen": f"{ask(n)}\n{texts(n)[0]}", "rejected": f"{ask(n)}\n{texts(n)[2]}"},
    "hh": lambda n: {
        "chosen": f"\n\nHuman: {ask(n)}\n\nAssistant: {texts(n)[0]}",
        "rejected": f"\n\nHuman: {ask(n)}\n\nAssistant: {texts(n)[2]}",
    },
    "conversations": lambda n: {"chosen": turns(ask(n), texts(n)[0]), "rejected": turns(ask(n), texts(n)[2])},
    "conversations and prompt": lambda n: {
        "prompt": ask(n), "chosen": turns(ask(n), texts(n)[0]), "rejected": turns(ask(n), texts(n)[2]),
    },
    "messages after a prompt": lambda n: {
        "prompt": turns(ask(n)), "chosen": answer(texts(n)[0]), "rejected": answer(texts(n)[2]),
    },
    "messages after a text": lambda n: {"prompt": ask(n), "chosen": answer(texts(n)[0]), "rejected": answer(texts(n)[2])},
    "helpsteer3": lambda n: {
        "context": turns(ask(n)), "response1": texts(n)[2], "response2": texts(n)[0], "overall_preference": 2,
    },
    "helpsteer2 preference": lambda n: {
        "prompt": ask(n), "response_1": texts(n)[0], "response_2": texts(n)[2], "preference_strength": -1,
    },
    "ranks": lambda n: {"prompt": ask(n), "answers": [{"answer": texts(n)[2], "rank": 2}, {"answer": texts(n)[0], "rank": 1}]},
    "texts and ranks": lambda n: {"prompt": ask(n), "answers": [texts(n)[2], texts(n)[0]], "ranks": [2, 1]},
}  # fmt: skip

LISTS: dict[str, Callable[[int], Row | list[Row]]] = {
    "ultrafeedback": lambda n: {
        "instruction": ask(n),
        "completions": [{"response": text, "overall_score": 9, "fine-grained_score": score} for text, score in rated(n)],
    },
    "ultrafeedback, scores as text": lambda n: {
        "instruction": ask(n), "completions": [{"response": text, "overall_score": str(score)} for text, score in rated(n)],
    },
    "texts and scores": lambda n: {
        "prompt": turns(ask(n)),
        "completions": [text for text, _ in rated(n)],
        "scores": [score for _, score in rated(n)],
    },
    "one answer per row": lambda n: [
        {"prompt": ask(n), "response": text, "helpfulness": score} for text, score in rated(n, 1, 0, 2)
    ],
}  # fmt: skip


def prepare(rows: Sequence[Row], folder: Path, **data: Any) -> Summary:
    folder.mkdir(parents=True, exist_ok=True)
    path = write(folder / "rows.jsonl", rows)
    config = parse_config({"name": "x", "data": {"source": "preferences", "path": str(path), **SIZES, **data}}, "x")
    return prepare_examples(config, folder / "out")


def table_of(folder: Path) -> list[Row]:
    return [row for split in SPLITS for row in read_table(folder / "out" / split).to_pylist()]


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_in_every_layout_give_the_same_files(name: str, tmp_path: Path) -> None:
    prepare([PAIRS[name](n) for n in range(N)], tmp_path / "this")
    prepare([PAIRS["explicit"](n) for n in range(N)], tmp_path / "twin")
    assert content(tmp_path / "this/out") == content(tmp_path / "twin/out")


@pytest.mark.parametrize("name", LISTS)
def test_rated_answers_in_every_layout_give_the_same_files(name: str, tmp_path: Path) -> None:
    made = [LISTS[name](n) for n in range(N)]
    summary = prepare([row for rows in made for row in (rows if isinstance(rows, list) else [rows])], tmp_path / "this")
    assert summary["answers"] == 3 * N
    prepare([dict(LISTS["ultrafeedback"](n)) for n in range(N)], tmp_path / "twin")
    assert content(tmp_path / "this/out") == content(tmp_path / "twin/out")


def test_the_best_answer_is_the_response_of_the_dolly_shaped_twin(tmp_path: Path) -> None:
    """Same ids, prompts, tokens and splits, so stage `sampling` draws the same negatives."""
    prepare([dict(LISTS["ultrafeedback"](n)) for n in range(N)], tmp_path)
    dolly = tmp_path / "dolly"
    rows = [{"instruction": ask(n), "context": "", "response": texts(n)[0], "category": ""} for n in range(N)]
    prepare(rows, dolly, source="auto")
    for split in SPLITS:
        table = read_table(tmp_path / "out" / split)
        assert table.schema.equals(RANKED_EXAMPLE_SCHEMA)
        assert table.select(EXAMPLE_SCHEMA.names).equals(read_table(dolly / "out" / split))
    for row in table_of(tmp_path):
        n = int(row["prompt"].split()[-1].rstrip("."))
        assert row["answer_text"] == texts(n)[1:]
        assert (row["answer_rank"], row["answer_score"]) == ([1, 2], [4.5, 3.0, 1.0])
        assert all(ids[-1] == row["response_ids"][-1] for ids in row["answer_ids"])


def test_groups_of_a_run_keep_their_prompt_as_it_is(tmp_path: Path) -> None:
    kinds, ranks, scores = ["gold", "answer", "answer"], [0, 1, 2], [4.5, 3, 1]
    groups = [
        {"prompt": f"{ask(n)}\n", "candidate_text": texts(n), "candidate_kind": kinds, "rank": ranks, "score": scores}
        for n in range(N)
    ]
    prepare(groups, tmp_path / "groups")
    prepare([dict(LISTS["ultrafeedback"](n)) for n in range(N)], tmp_path / "twin")
    assert content(tmp_path / "groups/out") == content(tmp_path / "twin/out")


def test_answers_in_order_need_to_be_declared(tmp_path: Path) -> None:
    rows = [{"prompt": ask(n), "completions": texts(n)} for n in range(N)]
    with pytest.raises(DataError, match=r"completions has texts without scores: .* data\.fields\.score=order"):
        prepare(rows, tmp_path)
    prepare(rows, tmp_path, fields={"score": "order"})
    assert {tuple(row["answer_rank"]) for row in table_of(tmp_path)} == {(1, 2)}
    assert {row["answer_score"] for row in table_of(tmp_path)} == {None}


def test_named_fields_choose_list_and_score(tmp_path: Path) -> None:
    rows = [
        {"q": ask(n), "tries": [{"t": text, "overall_score": -score, "truth": score} for text, score in rated(n)]}
        for n in range(N)
    ]
    prepare(rows, tmp_path, fields={"instruction": "q", "answers": "tries", "response": "t", "score": "truth"})
    assert {row["response"].split()[0] for row in table_of(tmp_path)} == {"Colour"}


def two(**columns: Any) -> Row:
    """A row with two completions that have these columns."""
    return {"prompt": "a", "completions": [{"response": text, **columns} for text in "xy"]}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "chosen": "x", "rejected": "x"}, "1 different answers, but at least two are needed"),
        ({"prompt": "a", "completions": [{"response": "x", "score": 1}]}, "1 different answers"),
        (two(score=1), r"all 2 answers are equally good \(score 1"),
        (two(score="N/A"), r"completions\[0\].score must be a number, but is 'N/A'"),
        (two(score=float("nan")), r"completions\[0\].score must be a number, but is nan"),
        (two(score=True), r"completions\[0\].score must be a number, but is True"),
        (two(), r"completions\[0\] has no score"),
        (
            {"prompt": "a", "completions": ["x", "y"], "scores": [1]},
            "completions has 2 answers, but scores has 1 numbers",
        ),
        ({"prompt": "a", "completions": [{"score": 1}]}, r"completions\[0\] has no text"),
        (
            {"prompt": "a", "chosen": "x", "rejected": "y", "score_chosen": 1, "score_rejected": 2},
            "chosen has the score 1, ",
        ),
        ({"prompt": "a", "chosen": "x", "rejected": ["y"]}, "chosen and rejected must both be texts, or both lists of"),
        ({"chosen": "x", "rejected": "y"}, "chosen and rejected have no common beginning, and there is no prompt"),
        (
            {"chosen": turns("a", "x"), "rejected": turns("b", "y")},
            "chosen and rejected answer different conversations",
        ),
        ({"chosen": turns("a"), "rejected": turns("b")}, "chosen ends with a message of user"),
        ({"prompt": "", "chosen": "x", "rejected": "y"}, "empty prompt"),
        (
            {"chosen": answer("x"), "rejected": answer("y")},
            r"prompt\[0\] is of the assistant, but a conversation begins",
        ),
        ({"instruction": "a", "output": "x"}, "no ranked answers: .* found instruction, output"),
        ({"response1": "x", "response2": "y", "context": "a"}, "response1 and response2 have no preference"),
    ],
)
def test_a_row_without_a_preference_is_refused_or_left_out_and_counted(row: Row, reason: str, tmp_path: Path) -> None:
    rows = [*(PAIRS["explicit"](n) for n in range(N)), row]
    with pytest.raises(DataError, match=rf"rows\.jsonl:21: {reason}"):
        prepare(rows, tmp_path)
    assert prepare(rows, tmp_path, on_bad_row="quarantine")["quarantined_rows"] == 1
    (bad,) = read_jsonl(tmp_path / "out/quarantine.jsonl")
    assert bad["line"] == 21


def arranged(*answers: tuple[str, float], limit: int = 9) -> tuple[list[RatedAnswer], Counter[str]]:
    rated_answers = tuple(RatedAnswer(text, score) for text, score in answers)
    row = InstructionRow("instructions", "", "Why?", "", "", answers=rated_answers)
    counts: Counter[str] = Counter()
    (made,) = arrange([RatedRow(row, Place("f", 1, None), is_single=False)], 17, limit, counts)
    assert isinstance(made, InstructionRow)
    assert made.response == made.answers[0].text
    return list(made.answers), counts


def test_ties_have_one_rank_and_are_counted() -> None:
    answers, counts = arranged(("a", 1), ("b", 0.5), ("c", 1), ("d", 0), ("e", 0.5))
    assert [answer.rank for answer in answers] == [0, 0, 2, 2, 4]
    assert [answer.score for answer in answers] == [1, 1, 0.5, 0.5, 0]
    assert counts["tied_answers"] == 4
    assert {answer.text for answer in answers[:2]} == {"a", "c"}
    assert answers == arranged(("e", 0.5), ("d", 0), ("c", 1), ("b", 0.5), ("a", 1))[0]  # whatever their order


def test_of_many_answers_the_best_the_worst_and_some_between_are_kept() -> None:
    answers, counts = arranged(*((str(n), float(n)) for n in range(10)), limit=4)
    assert [answer.text for answer in answers] == ["9", "6", "3", "0"]
    assert [answer.rank for answer in answers] == [0, 1, 2, 3]
    assert (counts["answers"], counts["answers_left_out"]) == (4, 6)
    assert evenly(3, 4) == [0, 1, 2]
    assert evenly(9, 2) == [0, 8]


def test_equal_and_empty_answers_are_left_out_and_counted() -> None:
    answers, counts = arranged(("a", 1), ("a", 0), ("", 2), ("b", 0))
    assert [answer.text for answer in answers] == ["a", "b"]
    assert (counts["repeated_answers"], counts["empty_answers"]) == (1, 1)


def test_a_dialogue_of_speakers_is_messages() -> None:
    assert dialogue("\n\nHuman: Why?\n\nAssistant: So.\n\nHuman: Sure?\n\nAssistant:") == turns("Why?", "So.", "Sure?")
    assert dialogue("Why?") == "Why?"


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("Q: sky? A: The blue", "Q: sky? A: The red", "Q: sky? A: The "),
        ("sky?\nThe blue", "sky?\nThe red", "sky?\n"),
        ("Human: sky? Assistant: It is", "Human: sky? Assistant: It was", "Human: sky? Assistant:"),
        ("a", "b", ""),
    ],
)
def test_answers_begin_after_the_last_mark_that_they_have_in_common(chosen: str, rejected: str, prompt: str) -> None:
    assert chosen[: common_prompt(chosen, rejected)] == prompt


def test_ranked_answers_need_no_negatives_but_may_have_some() -> None:
    data = {"source": "preferences", "path": "x.jsonl", "max_answers": 4}
    alone = parse_config({"name": "x", "data": data}, "x")
    assert (alone.candidates, alone.sampling.negatives.total) == (4, 0)
    mixed = parse_config({"name": "x", "data": data, "sampling": {"negatives": {"meanfield": 2}}}, "x")
    assert (mixed.candidates, mixed.sampling.negatives.by_kind) == (6, {"meanfield": 2})
    entry = {"source": "preferences", "path": "x.jsonl"}
    assert parse_config({"name": "x", "data": {"sources": [entry]}}, "x").candidates == 8
    with pytest.raises(ConfigError, match="K = 1: at least one negative"):
        parse_config({"name": "x", "sampling": {"negatives": {"batch": 0, "meanfield": 0, "truncation": 0}}}, "x")


def test_rows_that_are_chosen_and_rejected_are_not_taken_for_conversations(tmp_path: Path) -> None:
    rows = [PAIRS["conversations"](n) | {"messages": turns(ask(n), texts(n)[0])} for n in range(N)]
    with pytest.raises(DataError, match=r"chosen and rejected\. Set data\.source=preferences"):
        prepare(rows, tmp_path, source="auto")


def test_json_is_enough(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([PAIRS["explicit"](n) for n in range(N)]))
    config = {"source": "preferences", "path": str(tmp_path / "rows.json"), **SIZES}
    assert prepare_examples(parse_config({"name": "x", "data": config}, "x"), tmp_path / "out")["answers"] == 2 * N
