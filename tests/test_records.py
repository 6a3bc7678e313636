"""The schemas of rows."""

import pyarrow as pa

from cpo_ray.records import (
    CANDIDATE_KINDS,
    EXAMPLE_SCHEMA,
    GROUP_SCHEMA,
    NEGATIVE_KINDS,
    RANKED_EXAMPLE_SCHEMA,
    SCORED_GROUP_SCHEMA,
    Example,
    Group,
    RankedExample,
    cut_prompt,
    end_response,
    without_eos,
)


def test_schemas_have_the_fields_of_the_rows():
    assert EXAMPLE_SCHEMA.names == list(Example.__annotations__)
    assert [*GROUP_SCHEMA.names, "score"] == SCORED_GROUP_SCHEMA.names == list(Group.__annotations__)
    ranked = [*Example.__annotations__, *RankedExample.__annotations__]
    assert RANKED_EXAMPLE_SCHEMA.names == list(dict.fromkeys(ranked))


def test_the_gold_is_candidate_zero_and_not_a_negative():
    assert CANDIDATE_KINDS[0] == "gold"
    assert "gold" not in NEGATIVE_KINDS
    assert len(NEGATIVE_KINDS) == len(CANDIDATE_KINDS) - 1


def test_a_response_ends_with_eos_only_if_all_of_it_fits():
    assert end_response([5, 6, 7], 0, 4) == [5, 6, 7, 0]
    assert end_response([5, 6, 7, 8], 0, 4) == [5, 6, 7, 8]
    assert end_response([5, 6, 7, 8, 9], 0, 4) == [5, 6, 7, 8]
    assert end_response([5, 6], 0, 4, ends=False) == [5, 6]
    assert end_response([], 0, 4) == [0]


def test_the_text_of_a_response_is_what_comes_before_eos():
    assert without_eos([5, 6, 0], 0) == [5, 6]
    assert without_eos([5, 6, 7], 0) == [5, 6, 7]
    assert without_eos([0], 0) == without_eos([], 0) == []


def test_log_probs_of_long_sequences_keep_float64():
    assert GROUP_SCHEMA.field("ref_logps").type == pa.list_(pa.float64())


def test_a_group_survives_a_round_trip_through_arrow():
    group = Group(
        id="0" * 16,
        prompt="p",
        prompt_ids=[1],
        candidate_kind=["gold", "batch"],
        candidate_ids=[[5, 2], [7, 2]],
        candidate_text=["a", "b"],
        similarity=[1.0, 0.5],
        rank=[0, 1],
        ref_logps=[-1.25, -700.0625],
        ref_spread=[0.0, 0.25],
    )
    assert pa.Table.from_pylist([group], schema=GROUP_SCHEMA).to_pylist() == [group]


def test_a_cut_prompt_is_its_leading_special_tokens_and_the_end_of_its_text():
    assert cut_prompt([9, 1, 2, 3], 4, {9}) == [9, 1, 2, 3]
    assert cut_prompt([9, 1, 2, 3, 4], 3, {9}) == [9, 3, 4]
    assert cut_prompt([9, 8, 1, 2, 9, 4], 4, {8, 9}) == [9, 8, 9, 4]
    assert cut_prompt([1, 2, 3, 4], 3, {9}) == [2, 3, 4]
    assert cut_prompt([9, 9, 9, 1], 3, {9}) == [9, 9, 1]
