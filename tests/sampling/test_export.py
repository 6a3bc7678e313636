from typing import Any

import pytest

from cpo_ray.sampling.export import preference_pairs, rated_completions


def make_group(**columns: Any) -> Any:
    """Five candidates in the order of their kinds; the third equals the second, and the last two tie."""
    return {
        "id": "aa",
        "prompt": "Why?\n",
        "candidate_kind": ["gold", "answer", "batch", "meanfield", "truncation"],
        "candidate_text": ["best", "good", "good", "bad", "poor"],
        "rank": [0, 1, 2, 3, 3],
        "score": [4.0, 2.5, None, None, None],
    } | columns


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("best", [("best", "good"), ("best", "bad"), ("best", "poor")]),
        ("best-worst", [("best", "poor")]),
        ("all", [("best", "good"), ("best", "bad"), ("best", "poor"), ("good", "bad"), ("good", "poor")]),
    ],
)
def test_pairs_are_of_candidates_of_which_one_is_better(which: Any, expected: list[tuple[str, str]]) -> None:
    pairs = list(preference_pairs(make_group(), which))
    assert [(pair["chosen"], pair["rejected"]) for pair in pairs] == expected
    assert {pair["prompt"] for pair in pairs} == {"Why?\n"}
    first = pairs[0]
    assert (first["chosen_kind"], first["rejected_kind"]) == (
        "gold",
        "truncation" if which == "best-worst" else "answer",
    )
    assert ("score_chosen" in first) == (which != "best-worst")


def test_two_of_the_best_make_no_pair() -> None:
    group = make_group(rank=[0, 0, 2, 3, 4])
    assert {pair["rejected"] for pair in preference_pairs(group, "best")} == {"bad", "poor"}


def test_completions_have_the_scores_of_the_data_or_else_count_what_is_worse() -> None:
    row = rated_completions(make_group())
    assert row["instruction"] == "Why?\n"
    assert [(done["response"], done["overall_score"]) for done in row["completions"]] == [
        ("best", 3.0),
        ("good", 2.0),
        ("bad", 0.0),
        ("poor", 0.0),
    ]
    scored = rated_completions(make_group(score=[4.0, 2.5, 2.5, -1.0, -1.0]))
    assert [done["overall_score"] for done in scored["completions"]] == [4.0, 2.5, -1.0, -1.0]
