"""Units: selection of rows, negatives without a model, order of candidates."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpo_ray.errors import ConfigError, DataError
from cpo_ray.sampling.selection import select_rows
from cpo_ray.sampling.units import add, put_in_order, read_units, windows, write_units
from tests.sampling.made_rows import EOS, draw, make_config, make_table, responses


def test_a_unit_draws_from_its_own_rows_whatever_else_is_drawn():
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


def test_too_few_different_responses_name_the_row():
    table = make_table([*responses(1) * 7, *responses(3)[1:]])
    with pytest.raises(DataError, match=f"row {0:016x}: .* have 1 different responses"):
        draw(table, 0, make_config())
    with pytest.raises(DataError, match=f"row {0:016x}: .* have 1 different responses"):
        select_rows(table, make_config(), context=32, eos=EOS)  # before any actor starts


def test_the_rows_of_other_batches_are_looked_at_where_those_are_drawn():
    """Ten rows of one response and ten of others: halves will not do, every second row will."""
    table, config = make_table([*responses(1) * 10, *responses(10)]), make_config()
    with pytest.raises(DataError, match=f"row {0:016x}: .* have 0 different responses"):
        select_rows(table, config, 32, EOS, lambda rows: [(range(10), 0), (range(10, rows), 10)])
    evenly = [(range(0, 20, 2), 0), (range(1, 20, 2), 1)]
    assert len(select_rows(table, config, 32, EOS, lambda _: evenly).table) == 20


def test_fewer_rows_than_batch_negatives_need_are_refused_before_anything_starts():
    with pytest.raises(DataError, match=r"have 2 different responses, .* Raise sampling\.batch_rows or lower"):
        select_rows(make_table(responses(3)), make_config(), context=32, eos=EOS)
    assert len(select_rows(make_table(responses(4)), make_config(), context=32, eos=EOS).table) == 4


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
    """Units drawn in any order, from a table in other chunks, after an Arrow round trip: the same groups."""
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


def test_candidates_are_sorted_by_kind_and_keep_their_order():
    unit = draw(make_table(responses(8)), 0, make_config())
    group = unit["groups"][0]
    before = dict(zip(map(tuple, group["candidate_ids"]), group["candidate_kind"], strict=True))
    add(group, "of_mine", [[7, 7, EOS]])
    add(group, "meanfield", [[9, 9, EOS]])
    add(group, "autoregressive", [[8, 8, EOS], [8, EOS]])
    put_in_order(group)
    assert group["candidate_kind"] == [
        "gold", "autoregressive", "autoregressive", "batch", "batch", "batch", "meanfield", "truncation", "truncation",
        "of_mine",
    ]  # fmt: skip
    assert group["candidate_ids"][1:3] == [[8, 8, EOS], [8, EOS]]
    for tokens, kind in zip(group["candidate_ids"], group["candidate_kind"], strict=True):
        assert before.get(tuple(tokens), kind) == kind


def test_prompts_beyond_the_context_keep_their_end_and_are_counted():
    table = pa.concat_tables([make_table(responses(4)), make_table(responses(8)[4:], prompt=range(1, 31))])
    selection = select_rows(table, make_config(), context=32, eos=EOS)
    assert (selection.prompt_tokens, selection.truncated_prompts, selection.left_out) == (24, 4, {})
    unit = draw(selection.table, 0, make_config(), selection.prompt_tokens)
    assert unit["groups"][0]["prompt_ids"] == [5, 6, 7]
    assert unit["groups"][-1]["prompt_ids"] == list(range(7, 31))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ([4, EOS], "one-token response"),
        ([EOS], "empty response"),
        ([], "empty response"),
        ([4, 5], "without the tokenizer's EOS"),
        ([4] * 8 + [EOS], "longer than data.max_response_tokens"),
    ],
)
def test_rows_that_cannot_become_groups_follow_on_bad_row(bad, reason):
    table = make_table([*responses(3), bad, *responses(8)[4:]])
    with pytest.raises(DataError, match=f"training row {3:016x} .number 3.*{reason}"):
        select_rows(table, make_config(), context=32, eos=EOS)
    selection = select_rows(table, make_config(on_bad_row="quarantine"), context=32, eos=EOS)
    assert list(selection.left_out.values()) == [1]
    assert reason in next(iter(selection.left_out))
    assert len(selection.table) == 7


def test_selection_takes_the_first_rows_and_sees_slices_right():
    table = make_table([[4, EOS], *responses(10)]).slice(1)
    selection = select_rows(table, make_config(rows=5), context=32, eos=EOS)
    assert selection.table["id"].to_pylist() == [f"{row:016x}" for row in range(1, 6)]


def test_selection_refuses_an_empty_prompt_a_small_context_and_nothing():
    with pytest.raises(DataError, match="empty prompt"):
        select_rows(make_table(responses(4), prompt=()), make_config(), context=32, eos=EOS)
    with pytest.raises(ConfigError, match="leaves no room for a prompt"):
        select_rows(make_table(responses(4)), make_config(), context=8, eos=EOS)
    with pytest.raises(DataError, match="no training row is left"):
        select_rows(make_table([[4, EOS]]), make_config(on_bad_row="quarantine"), context=32, eos=EOS)


def test_a_one_token_response_is_fine_without_truncation_negatives():
    config = make_config(negatives={"batch": 1, "meanfield": 0, "truncation": 0})
    assert len(select_rows(make_table([[4, EOS], [5, EOS]]), config, context=32, eos=EOS).table) == 2
