"""The registry: shipped kinds, the user's kinds, and what is common to all kinds."""

import sys
from itertools import permutations
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpo_ray.config import NegativeCounts
from cpo_ray.errors import ConfigError
from cpo_ray.records import NEGATIVE_KINDS
from cpo_ray.sampling.negatives.registry import SHIPPED, draw_kind, hash_kinds, load_kinds
from tests.sampling.example_rows import EOS, LIMITS, draw, encode, make_config, make_context, make_table, responses

OWN = {"reversed_gold": "toy_negatives.words:reversed_gold", "spoken": "toy_negatives.words:spoken"}
TOY = """
    def reversed_gold(context, rng):
        return [*reversed(context.body), context.eos]

    def spoken(context, rng):
        return context.response.upper() + str(rng.integers(1000))

    NUMBER = 3
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """An importable package with two kinds of negatives."""
    package = tmp_path / "toy_negatives"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "words.py").write_text(dedent(TOY))
    monkeypatch.syspath_prepend(tmp_path)
    yield package
    for name in [name for name in sys.modules if name.startswith("toy_negatives")]:
        del sys.modules[name]


def drawn(draw, count=1, present=(), redraws=7, gold=(1, 2, 3, EOS)):
    return draw_kind("mine", draw, count, make_context(gold), present, 17, redraws, LIMITS)


def test_every_shipped_kind_has_a_count_and_an_implementation():
    made_with_a_model = {"autoregressive", "greedy", "meanfield", "unhelpful"}
    assert {*SHIPPED, *made_with_a_model} == set(NEGATIVE_KINDS) == set(NegativeCounts.model_fields)


def test_kinds_of_the_user_are_drawn_with_the_shipped_ones(toy):
    counts = {"batch": 1, "meanfield": 0, "truncation": 1, "reversed_gold": 1, "spoken": 2}
    config = make_config(negatives=counts, kinds=OWN)
    assert config.candidates == 6
    unit = draw(make_table(responses(8)), 0, config)
    for group in unit["groups"]:
        assert group["candidate_kind"] == ["gold", "batch", "truncation", "reversed_gold", "spoken", "spoken"]
        gold, _, _, backwards, *spoken = group["candidate_ids"]
        assert backwards == [*reversed(gold[:-1]), EOS]
        assert all(len(tokens) == 8 and EOS not in tokens for tokens in spoken)  # cut
    assert {work["kind"]: work["tokens"] for work in unit["work"]}["reversed_gold"] == 8 * 4


def test_the_kind_in_the_documentation_works(tmp_path, monkeypatch):
    page = (Path(__file__).parents[3] / "docs" / "sampling.md").read_text()
    code, _, _ = page.partition("    # mypackage/negatives.py\n")[2].partition("\n\n")
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "negatives.py").write_text(dedent(code))
    monkeypatch.syspath_prepend(tmp_path)
    negatives = {"batch": 1, "shuffled": 2, "meanfield": 0, "truncation": 0}
    config = make_config(negatives=negatives, kinds={"shuffled": "mypackage.negatives:shuffled"})
    table = make_table(responses(8))
    for group, response in zip(draw(table, 0, config)["groups"], table["response"].to_pylist(), strict=True):
        for negative in group["candidate_ids"][2:]:
            assert negative in [encode(" ".join(words)) for words in permutations(response.split())]


def test_a_kind_with_count_zero_is_not_imported():
    config = make_config(kinds={"absent": "no_such_package:draw"}, negatives={"absent": 0, "batch": 1})
    assert list(load_kinds(config.sampling)) == ["batch", "truncation"]
    assert hash_kinds(config.sampling) == {}


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("no_such_package.words:draw", ["cannot be imported", "'no_such_package'", "PYTHONPATH", "every node"]),
        ("toy_negatives.words:missing", ["toy_negatives.words:missing is not a function"]),
        ("toy_negatives.words:NUMBER", ["is not a function: 3"]),
    ],
)
def test_a_kind_that_cannot_be_loaded_raises_an_error_with_the_reason(toy, reference, words):
    config = make_config(kinds={"mine": reference}, negatives={"mine": 1})
    with pytest.raises(ConfigError, match=r"sampling\.kinds\.mine: ") as caught:
        load_kinds(config.sampling)
    for word in words:
        assert word in str(caught.value)


def test_the_hash_follows_the_source_of_the_kinds_in_use(toy):
    config = make_config(kinds=OWN, negatives={"spoken": 1})
    before = hash_kinds(config.sampling)
    assert list(before) == ["spoken"]
    assert hash_kinds(config.sampling) == before
    (toy / "words.py").write_text(dedent(TOY) + "# changed\n")
    assert hash_kinds(config.sampling) != before


def test_a_repeated_candidate_is_drawn_again_then_kept_and_counted():
    sequence = iter([[1, 2, 3, EOS], [9, EOS], [7, EOS], [7, EOS], [8, EOS]])
    result = drawn(lambda context, rng: next(sequence), count=2, present=[[9, EOS]])
    assert result.negatives == [[7, EOS], [8, EOS]]
    assert result.redraws == 3
    assert result.discarded_tokens == 4 + 2 + 2
    stubborn = drawn(lambda context, rng: context.gold, redraws=2)
    assert (stubborn.negatives, stubborn.redraws) == ([[1, 2, 3, EOS]], 2)
    assert drawn(lambda context, rng: context.gold, redraws=0).redraws == 0


def test_a_kind_gets_its_earlier_negatives_and_its_own_random_numbers():
    seen = []

    def remember(context, rng):
        seen.append((tuple(context.taken), int(rng.integers(1000))))
        return [len(context.taken) + 1, EOS]

    drawn(remember, count=3)
    again = seen.copy()
    drawn(remember, count=3)
    assert seen[3:] == again
    assert [taken for taken, _ in again] == [(), ([1, EOS],), ([1, EOS], [2, EOS])]
    assert len({number for _, number in again}) == 3


@pytest.mark.parametrize(
    "negative",
    [[], [1, 2], [EOS, 1, EOS], [1] * 8 + [EOS], [100, EOS], [-1, EOS]],
    ids=["empty", "no EOS", "two EOS", "too long", "beyond the vocabulary", "negative"],
)
def test_an_invalid_continuation_raises_an_error_with_kind_and_row(negative):
    with pytest.raises(
        ConfigError, match=r"sampling\.negatives\.mine: the negative for row row is not a valid continuation"
    ):
        drawn(lambda context, rng: negative)


@pytest.mark.parametrize(
    ("gold", "valid", "invalid"),
    [
        ((1, 2, 3, EOS), [[4] * 8, [4] * 7 + [EOS], [4, EOS]], [[4] * 3, [4] * 7]),
        ((1, 2, 3), [[4] * 8, [4] * 3, [4, EOS]], [[4] * 2, [4] * 4]),
    ],
    ids=["whole gold", "cut gold"],
)
def test_tokens_without_eos_are_cut_at_the_limit_or_where_the_gold_is(gold, valid, invalid):
    for negative in valid:
        assert drawn(lambda context, rng, negative=negative: negative, gold=gold).negatives == [negative]
    for negative in invalid:
        with pytest.raises(ConfigError, match=f"or without EOS if it is cut to {8 if gold[-1] == EOS else '3 or 8'} "):
            drawn(lambda context, rng, negative=negative: negative, gold=gold)


def test_the_text_of_a_gold_is_what_comes_before_its_eos():
    for gold in ([1, 2, EOS], [1, 2]):
        context = make_context(gold)
        assert (context.body, context.eos, context.gold) == ([1, 2], EOS, gold)


@given(
    body=st.lists(st.integers(1, 6), min_size=2, max_size=6),
    others=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=6), min_size=3, max_size=6),
    present=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3), max_size=3),
    count=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_shipped_kinds_repeat_no_candidate_if_there_are_enough(body, others, present, count, seed):
    gold, pool = [*body, EOS], [[*tokens, EOS] for tokens in others]
    present = [[*tokens, EOS] for tokens in present]
    context = make_context(gold, [list(t) for t in dict.fromkeys(map(tuple, pool)) if list(t) != gold])
    for kind, possible in (
        ("batch", [tokens for tokens in context.others if tokens not in present]),
        ("truncation", [t for n in range(1, len(body)) if (t := [*body[:n], EOS]) not in present]),
    ):
        if kind == "batch" and len(context.others) < count:
            continue
        result = draw_kind(kind, SHIPPED[kind], count, context, present, seed, 64, LIMITS)
        assert gold not in result.negatives
        assert len(result.negatives) == count
        fresh = {tuple(negative) for negative in result.negatives if negative not in present}
        assert len(fresh) == min(count, len(possible))
        assert draw_kind(kind, SHIPPED[kind], count, context, present, seed, 64, LIMITS) == result
