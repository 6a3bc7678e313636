from itertools import islice

import pytest

from cpo_ray.data.rows import InstructionRow
from cpo_ray.data.synthetic import filler_words, is_right, synthetic_rows, words
from cpo_ray.data.synthetic_families import FAMILIES


@pytest.fixture(scope="module")
def rows() -> list[InstructionRow]:
    return list(islice(synthetic_rows(17), 4000))


def test_the_same_seed_gives_the_same_rows_however_many_are_taken(rows: list[InstructionRow]) -> None:
    assert list(islice(synthetic_rows(17), 200)) == rows[:200]
    assert list(islice(synthetic_rows(18), 200)) != rows[:200]


def test_prompts_are_unique_and_families_balanced(rows: list[InstructionRow]) -> None:
    assert len({(row.instruction, row.context) for row in rows}) == len(rows)
    counts = {family.name: sum(row.category == family.name for row in rows) for family in FAMILIES}
    assert len(counts) >= 8
    # Arithmetic on one-digit numbers runs out of questions first.
    assert min(counts.values()) > len(rows) / len(FAMILIES) / 3


def test_every_family_is_worded_in_several_ways() -> None:
    for family in FAMILIES:
        assert len(set(family.instructions)) >= 3
        assert len(set(family.responses)) >= 6
        assert all(text.count("{answer}") == 1 for text in family.responses)


def test_every_response_is_right_and_no_answer_word_is_filler(rows: list[InstructionRow]) -> None:
    filler = set(filler_words())
    for row in rows:
        assert row.answer
        assert filler.isdisjoint(row.answer), row
        assert is_right(row.response, row.answer, filler), row


def test_right_answers_are_worded_in_many_ways(rows: list[InstructionRow]) -> None:
    """Apart from the answer, the responses of a family have many wordings."""
    filler = set(filler_words())
    responses: dict[str, set[str]] = {}
    for row in rows:
        skeleton = " ".join(word if word in filler else "_" for word in words(row.response))
        responses.setdefault(row.category, set()).add(skeleton)
    assert min(map(len, responses.values())) >= 30


@pytest.mark.parametrize(
    ("response", "right"),
    [
        ("The sum is 42.", True),
        ("42", True),
        ("Sure. THE ANSWER IS 42!", True),
        ("The sum is 41.", False),
        ("The sum is 42 42.", False),
        ("The sum is 4 2.", False),
        ("The sum of 40 and 2 is 42.", False),
        ("The sum is.", False),
        ("", False),
        ("Bananas: 42.", False),
    ],
)
def test_judging_rule(response: str, right: bool) -> None:
    assert is_right(response, ["42"], set(filler_words())) is right


def test_answers_are_correct_by_independent_arithmetic(rows: list[InstructionRow]) -> None:
    """The families that plain Python can recompute from the instruction's text alone."""
    checked = 0
    for row in rows:
        numbers = [int(word) for word in words(row.instruction) if word.isdigit()]
        expected: list[int] | None = None
        if row.category == "addition":
            expected = [sum(numbers)]
        elif row.category == "subtraction":
            expected = [max(numbers) - min(numbers)]
        elif row.category == "extreme":
            expected = [max(numbers) if "largest" in row.instruction else min(numbers)]
        elif row.category == "sort_numbers":
            expected = sorted(numbers, reverse="largest to smallest" in row.instruction)
        if expected is not None:
            assert row.answer == tuple(map(str, expected)), row
            checked += 1
    assert checked > 800


def test_passages_contain_their_answers(rows: list[InstructionRow]) -> None:
    with_context = [row for row in rows if row.context]
    assert {row.category for row in with_context} == {"how_many", "who", "fill_in"}
    for row in with_context:
        assert words(row.context).count(row.answer[0]) == 1
