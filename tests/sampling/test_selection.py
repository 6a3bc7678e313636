"""Which rows become groups, and how many tokens their prompts keep."""

import pyarrow as pa
import pytest

from cpo_ray.config import RunConfig
from cpo_ray.errors import ConfigError, DataError
from cpo_ray.sampling.selection import select_rows
from tests.sampling.example_rows import EOS, draw, make_config, make_table, responses


def test_a_batch_plan_decides_which_rows_are_checked():
    """Ten rows with one response, ten with distinct ones: the halves have too few, every second row has enough."""
    table, config = make_table([*responses(1) * 10, *responses(10)]), make_config()
    with pytest.raises(DataError, match=f"row {0:016x}: .* have 0 different responses"):
        select_rows(table, config, 32, EOS, lambda rows: [(range(10), 0), (range(10, rows), 10)])
    evenly = [(range(0, 20, 2), 0), (range(1, 20, 2), 1)]
    assert len(select_rows(table, config, 32, EOS, lambda _: evenly).table) == 20


def test_fewer_rows_than_batch_negatives_need_raise_an_error():
    with pytest.raises(DataError, match=r"have 2 different responses, .* Raise sampling\.batch_rows or lower"):
        select_rows(make_table(responses(3)), make_config(), context=32, eos=EOS)
    assert len(select_rows(make_table(responses(4)), make_config(), context=32, eos=EOS).table) == 4


def test_prompts_longer_than_the_context_keep_their_last_tokens_and_are_counted():
    table = pa.concat_tables([make_table(responses(4)), make_table(responses(8)[4:], prompt=range(1, 31))])
    selection = select_rows(table, make_config(), context=32, eos=EOS)
    assert (selection.truncated_prompts, selection.left_out) == (4, {})
    unit = draw(selection.table, 0, make_config())
    assert unit["groups"][0]["prompt_ids"] == [5, 6, 7]
    assert unit["groups"][-1]["prompt_ids"] == list(range(7, 31))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ([4, EOS], "one-token response"),
        ([EOS], "empty response"),
        ([], "empty response"),
        ([4, 5], "without the tokenizer's EOS"),
        ([4] * 7, "without the tokenizer's EOS"),
        ([4], "without the tokenizer's EOS"),
        ([4] * 9, "longer than data.max_response_tokens"),
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


def test_a_response_without_eos_is_cut_at_the_limit_or_a_passage():
    cut, passage = [4] * 8, [4] * 5
    assert len(select_rows(make_table([cut, *responses(4)]), make_config(), context=32, eos=EOS).table) == 5
    table, config = make_table([passage, *responses(4)]), make_config()
    with pytest.raises(DataError, match="without the tokenizer's EOS"):
        select_rows(table, config, context=32, eos=EOS)
    passages = {"passages": {"tokens": 8, "min_tokens": 8}, "max_prompt_tokens": 8, "max_response_tokens": 8}
    data = {"source": "text", "path": "x", "tokenizer": {"path": "t"}, **passages}
    docs = {"source": "python_docs", "max_prompt_tokens": 8, "max_response_tokens": 8}
    embedded = RunConfig.model_validate(config.model_dump() | {"data": docs})
    articles = RunConfig.model_validate(config.model_dump() | {"data": data})
    for source in (embedded, articles):
        assert len(select_rows(table, source, context=32, eos=EOS).table) == 5
    with pytest.raises(DataError, match="one-token response"):
        select_rows(make_table([[4], *responses(4)]), articles, context=32, eos=EOS)


def test_selection_takes_the_first_rows_of_a_sliced_table():
    table = make_table([[4, EOS], *responses(10)]).slice(1)
    selection = select_rows(table, make_config(rows=5), context=32, eos=EOS)
    assert selection.table["id"].to_pylist() == [f"{row:016x}" for row in range(1, 6)]


def test_an_empty_prompt_a_small_context_and_an_empty_selection_raise_errors():
    with pytest.raises(DataError, match="empty prompt"):
        select_rows(make_table(responses(4), prompt=()), make_config(), context=32, eos=EOS)
    with pytest.raises(ConfigError, match="leaves no room for a prompt"):
        select_rows(make_table(responses(4)), make_config(), context=8, eos=EOS)
    with pytest.raises(DataError, match="no training row is left"):
        select_rows(make_table([[4, EOS]]), make_config(on_bad_row="quarantine"), context=32, eos=EOS)


def test_a_one_token_response_is_allowed_without_truncation_negatives():
    config = make_config(negatives={"batch": 1, "meanfield": 0, "truncation": 0})
    assert len(select_rows(make_table([[4, EOS], [5, EOS]]), config, context=32, eos=EOS).table) == 2


def test_a_prompt_longer_than_the_context_keeps_the_special_tokens_that_it_begins_with():
    table = make_table(responses(4), prompt=[90, 91, *range(1, 31), 90, 5])
    selection = select_rows(table, make_config(), context=32, eos=EOS, special={90, 91})
    assert selection.table["prompt_ids"].to_pylist() == [[90, 91, *range(11, 31), 90, 5]] * 4
    assert selection.truncated_prompts == 4
