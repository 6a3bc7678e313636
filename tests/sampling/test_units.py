"""Units: selection of rows, negatives without a model, order of candidates."""

import pyarrow as pa
import pytest

from cpo_ray.config import RunConfig
from cpo_ray.errors import ConfigError, DataError
from cpo_ray.records import EXAMPLE_SCHEMA
from cpo_ray.sampling.selection import select_rows
from cpo_ray.sampling.units import add, draw_unit, put_in_order, read_units, write_units

EOS = 0


def make_config(**sampling):
    defaults = {"batch_rows": 8, "shard_rows": 16, "negatives": {"batch": 3, "meanfield": 0, "truncation": 2}}
    on_bad_row = sampling.pop("on_bad_row", "error")
    return RunConfig.model_validate(
        {
            "name": "test",
            "data": {"max_response_tokens": 8, "max_prompt_tokens": 8, "on_bad_row": on_bad_row},
            "model": {"context": 32},
            "sampling": defaults | sampling,
        }
    )


def make_table(responses, prompt=(5, 6, 7)):
    rows = [
        {
            "id": f"{number:016x}",
            "source": "test",
            "category": "",
            "prompt": "p",
            "response": str(response),
            "prompt_ids": list(prompt),
            "response_ids": list(response),
        }
        for number, response in enumerate(responses)
    ]
    return pa.Table.from_pylist(rows, schema=EXAMPLE_SCHEMA)


def responses(rows):
    return [[1 + row // 10, 11 + row % 10, 3, EOS] for row in range(rows)]


def test_a_unit_draws_from_its_own_rows_whatever_else_is_drawn():
    config, table = make_config(), make_table(responses(24))
    whole = draw_unit(table, 8, 16, config)
    again = draw_unit(make_table(responses(24)), 8, 16, config)
    assert whole == again
    assert read_units(write_units([whole])) == [whole]
    own = [row["response_ids"] for row in table.slice(8, 8).to_pylist()]
    for gold, group in zip(own, whole["groups"], strict=True):
        assert group["candidate_kind"] == ["gold", *["batch"] * 3, *["truncation"] * 2]
        assert group["candidate_ids"][0] == gold
        assert all(negative in own and negative != gold for negative in group["candidate_ids"][1:4])


def test_a_last_short_unit_exchanges_with_the_rows_before_it():
    config, table = make_config(), make_table(responses(17))
    unit = draw_unit(table, 16, 16, config)
    (group,) = unit["groups"]
    window = [row["response_ids"] for row in table.slice(9, 8).to_pylist()]
    assert all(negative in window for negative in group["candidate_ids"][1:4])


def test_too_few_different_responses_name_the_row():
    table = make_table([*responses(1) * 7, *responses(3)[1:]])
    with pytest.raises(DataError, match=f"row {0:016x}: 3 batch negatives need 3 different"):
        draw_unit(table, 0, 16, make_config())


def test_candidates_are_sorted_by_kind_and_keep_their_order():
    unit = draw_unit(make_table(responses(8)), 0, 16, make_config())
    group = unit["groups"][0]
    before = dict(zip(map(tuple, group["candidate_ids"]), group["candidate_kind"], strict=True))
    add(group, "meanfield", [[9, 9, EOS]])
    add(group, "autoregressive", [[8, 8, EOS], [8, EOS]])
    put_in_order(group)
    assert group["candidate_kind"] == [
        "gold", "autoregressive", "autoregressive", "batch", "batch", "batch", "meanfield", "truncation", "truncation"
    ]  # fmt: skip
    assert group["candidate_ids"][1:3] == [[8, 8, EOS], [8, EOS]]
    for tokens, kind in zip(group["candidate_ids"], group["candidate_kind"], strict=True):
        assert before.get(tuple(tokens), kind) == kind


def test_prompts_beyond_the_context_keep_their_end_and_are_counted():
    table = pa.concat_tables([make_table(responses(4)), make_table(responses(8)[4:], prompt=range(1, 31))])
    selection = select_rows(table, make_config(), context=32, eos=EOS)
    assert (selection.prompt_tokens, selection.truncated_prompts, selection.left_out) == (24, 4, {})
    unit = draw_unit(selection.table, 0, selection.prompt_tokens, make_config())
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
