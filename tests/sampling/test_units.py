"""Units: negatives that need no model, and the order of candidates."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpo_ray.config import RunConfig
from cpo_ray.errors import DataError
from cpo_ray.records import RANKED_EXAMPLE_SCHEMA
from cpo_ray.sampling.reranking import without_ranks
from cpo_ray.sampling.selection import select_rows
from cpo_ray.sampling.units import add_candidates, read_units, sort_candidates, windows, write_units
from tests.sampling.example_rows import EOS, draw, make_config, make_table, responses


def test_a_unit_draws_from_its_own_rows_and_is_reproducible():
    config, table = make_config(), make_table(responses(24))
    whole = draw(table, 8, config)
    again = draw(make_table(responses(24)), 8, config)
    assert whole["groups"] == again["groups"]
    assert read_units(write_units([whole])) == [whole]
    own = [row["response_ids"] for row in table.slice(8, 8).to_pylist()]
    for gold, group in zip(own, whole["groups"], strict=True):
        assert group["candidate_kind"] == ["gold", *["batch"] * 3, *["truncation"] * 2]
        assert group["candidate_ids"][0] == gold
        assert all(negative in own and negative != gold for negative in group["candidate_ids"][1:4])


def test_a_last_short_unit_exchanges_with_the_rows_before_it():
    config, table = make_config(), make_table(responses(17))
    unit = draw(table, 16, config)
    (group,) = unit["groups"]
    window = [row["response_ids"] for row in table.slice(9, 8).to_pylist()]
    assert all(negative in window for negative in group["candidate_ids"][1:4])


def test_too_few_distinct_responses_raise_an_error_with_the_row():
    table = make_table([*responses(1) * 7, *responses(3)[1:]])
    with pytest.raises(DataError, match=f"row {0:016x}: .* have 1 different responses"):
        draw(table, 0, make_config())
    with pytest.raises(DataError, match=f"row {0:016x}: .* have 1 different responses"):
        select_rows(table, make_config(), context=32, eos=EOS)  # before any actor starts


def test_every_row_is_in_one_unit_and_every_unit_has_a_full_batch():
    assert list(windows(17, 8)) == [(0, 0, 8), (8, 8, 16), (9, 16, 17)]
    assert list(windows(5, 8)) == [(0, 0, 5)]


@settings(max_examples=25)
@given(
    rows=st.integers(9, 40),
    alphabet=st.integers(5, 9),
    length=st.integers(2, 4),
    seed=st.integers(0, 2**31),
    order=st.randoms(use_true_random=False),
)
def test_groups_do_not_depend_on_shards_actors_or_order(rows, alphabet, length, seed, order):
    """Units drawn in any order, from a table with other chunks, after an Arrow round trip, have the same groups."""
    golds = [
        [*tokens, EOS] for tokens in np.random.default_rng(seed).integers(1, 1 + alphabet, (rows, length)).tolist()
    ]
    config, table = make_config().model_copy(update={"seed": seed}), make_table(golds)
    starts = list(range(0, rows, 8))
    in_order = {start: draw(table, start, config)["groups"] for start in starts}
    cut = order.randrange(1, rows)
    in_chunks = pa.concat_tables([table.slice(0, cut), table.slice(cut)])
    order.shuffle(starts)
    for start in starts:
        (unit,) = read_units(write_units([draw(in_chunks, start, config)]))
        assert unit["groups"] == in_order[start]
    for start, groups in in_order.items():
        first = max(0, min(start, rows - 8))
        pool = golds[first : start + 8]
        for gold, group in zip(golds[start:], groups, strict=False):
            assert all(negative in pool and negative != gold for negative in group["candidate_ids"][1:4])
            assert all(negative != gold for negative in group["candidate_ids"][4:])


def test_candidates_are_sorted_by_kind_and_keep_their_order_within_a_kind():
    unit = draw(make_table(responses(8)), 0, make_config())
    group = unit["groups"][0]
    before = dict(zip(map(tuple, group["candidate_ids"]), group["candidate_kind"], strict=True))
    add_candidates(group, "of_mine", [[7, 7, EOS]])
    add_candidates(group, "meanfield", [[9, 9, EOS]])
    add_candidates(group, "autoregressive", [[8, 8, EOS], [8, EOS]])
    sort_candidates(group)
    assert group["candidate_kind"] == [
        "gold", "autoregressive", "autoregressive", "batch", "batch", "batch", "meanfield", "truncation", "truncation",
        "of_mine",
    ]  # fmt: skip
    assert group["candidate_ids"][1:3] == [[8, 8, EOS], [8, EOS]]
    for tokens, kind in zip(group["candidate_ids"], group["candidate_kind"], strict=True):
        assert before.get(tuple(tokens), kind) == kind


def ranked_table():
    """Rows with two other answers, the first as good as the response; the last row has one, and no scores."""
    rows = make_table(responses(9)).to_pylist()
    other = [[40, 41, EOS], [42, EOS]]
    for row in rows:
        row |= {"answer_text": ["a", "b"], "answer_ids": other, "answer_rank": [0, 2], "answer_score": [2.0, 2.0, 0.5]}
    rows[8] |= {"answer_text": ["a"], "answer_ids": other[:1], "answer_rank": [1], "answer_score": None}
    return pa.Table.from_pylist(rows, schema=RANKED_EXAMPLE_SCHEMA)


def test_answers_of_the_data_come_before_the_negatives_with_their_ranks_and_scores():
    for negatives, kinds in (({}, []), ({"batch": 1, "truncation": 1}, ["batch", "truncation"])):
        # meanfield negatives are drawn by the scorer
        counts = {"batch": 0, "meanfield": 1, "truncation": 0} | negatives
        config = make_config(negatives=counts)
        unit = draw(ranked_table(), 8, config)
        (last,) = unit["groups"]
        first, *_ = draw(ranked_table(), 0, config)["groups"]
        sort_candidates(first)
        assert first["candidate_kind"] == ["gold", "answer", "answer", *kinds]
        assert first["candidate_ids"][1:3] == [[40, 41, EOS], [42, EOS]]
        assert (first["rank"], first["score"]) == ([0, 0, 2], [2.0, 2.0, 0.5])
        assert (last["rank"], last["score"]) == ([0, 1], None)
        assert read_units(write_units([unit])) == [unit]


def test_groups_are_ranked_again_without_the_ranks_of_their_negatives():
    group = {"candidate_kind": ["gold", "answer", "batch"], "rank": [0, 1, 2], "score": [2.0, 1.0, None]}
    assert without_ranks(group) == group | {"rank": [0, 1], "score": [2.0, 1.0]}
    plain = {"candidate_kind": ["gold", "batch", "batch"], "rank": [0, 2, 1]}
    assert without_ranks(plain) == plain | {"rank": [], "score": None}


def test_a_row_without_another_answer_needs_negatives():
    table = ranked_table()
    place = table.schema.get_field_index("answer_ids")
    table = table.set_column(
        place, table.schema.field(place), pa.array([[[4, EOS]]] * 8 + [[]], table.schema.field(place).type)
    )
    sizes = {"max_response_tokens": 8, "max_prompt_tokens": 8}
    data = {"source": "preferences", "path": "x", **sizes, "on_bad_row": "quarantine"}
    tree = {"name": "x", "data": data, "model": {"context": 32}}
    config = RunConfig.model_validate(tree)
    assert select_rows(table, config, context=32, eos=EOS).left_out == {
        "no second answer, and no negatives are configured": 1
    }
    config = RunConfig.model_validate(tree | {"sampling": {"negatives": {"meanfield": 1}}})
    assert select_rows(table, config, context=32, eos=EOS).left_out == {}
