from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpo_ray.data.splits import split_prompts
from cpo_ray.errors import DataError

Sizes = dict[str, int]


@st.composite
def prompts_and_sizes(draw: st.DrawFn) -> tuple[list[str], Sizes]:
    """Prompts, some of them repeated, with enough unique ones to fill every size."""
    counts = draw(st.lists(st.integers(2, 4), max_size=6))
    recurring = [f"again {n}" for n, count in enumerate(counts) for _ in range(count)]
    prompts = draw(st.permutations([*recurring, *(f"once {n}" for n in range(12 + len(recurring)))]))
    wanted = {name: draw(st.integers(0, 4)) for name in ("train", "validation", "test")}
    return prompts, wanted


@given(prompts_and_sizes(), st.integers(0, 2**32))
def test_sizes_are_exact_and_no_prompt_is_in_two_splits(case: tuple[list[str], Sizes], seed: int) -> None:
    prompts, sizes = case
    splits = split_prompts(prompts, sizes, seed)
    assert {name: len(rows) for name, rows in splits.items()} == sizes
    placed = [row for rows in splits.values() for row in rows]
    assert len(set(placed)) == len(placed)
    sides = [{prompts[row] for row in rows} for rows in splits.values()]
    assert sum(map(len, sides)) == len(set.union(*sides))


@given(prompts_and_sizes(), st.integers(0, 2**32), st.randoms(use_true_random=False))
def test_order_of_the_file_does_not_matter(case: tuple[list[str], Sizes], seed: int, rng: object) -> None:
    prompts, sizes = case
    shuffled = list(prompts)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]

    def texts(rows: list[str]) -> dict[str, list[str]]:
        return {name: [rows[index] for index in indices] for name, indices in split_prompts(rows, sizes, seed).items()}

    assert texts(prompts) == texts(shuffled)


def test_the_split_depends_on_the_seed() -> None:
    prompts = [f"prompt {n}" for n in range(100)]
    sizes = {"train": 50, "validation": 0, "test": 50}
    assert split_prompts(prompts, sizes, 1) == split_prompts(prompts, sizes, 1)
    assert split_prompts(prompts, sizes, 1)["test"] != split_prompts(prompts, sizes, 2)["test"]


def test_the_test_rows_do_not_depend_on_the_other_sizes() -> None:
    prompts = [f"prompt {n}" for n in range(100)]
    alone = split_prompts(prompts, {"train": 10, "validation": 0, "test": 30}, 17)
    beside = split_prompts(prompts, {"train": 40, "validation": 30, "test": 30}, 17)
    assert alone["test"] == beside["test"]


def test_rows_of_one_prompt_are_not_adjacent() -> None:
    prompts = ["the same"] * 50 + [f"prompt {n}" for n in range(50)]
    rows = split_prompts(prompts, {"train": 100, "validation": 0, "test": 0}, 17)["train"]
    assert Counter(rows) == Counter(range(100))
    assert len({prompts[row] for row in rows[:20]}) > 3


def test_too_few_rows_shows_the_arithmetic() -> None:
    with pytest.raises(DataError, match=r"9 usable rows, but train 5 \+ validation 2 \+ test 3 = 10: 1 too few"):
        split_prompts([str(n) for n in range(9)], {"train": 5, "validation": 2, "test": 3}, 17)


def test_whole_prompts_that_do_not_fit_are_explained() -> None:
    with pytest.raises(DataError, match=r"data.test_rows 3 cannot be filled: 2 rows fit"):
        split_prompts(["a", "a", "b", "b", "c", "c"], {"train": 2, "validation": 0, "test": 3}, 17)


SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


@given(st.lists(st.integers(0, 12), min_size=40, max_size=120), st.integers(0, 2**32))
def test_shares_use_every_row_and_keep_prompts_together(numbers: list[int], seed: int) -> None:
    """13 prompts with several rows each, so that few splits can be filled exactly, and 10 with one."""
    prompts = [*map(str, numbers), *(f"once {n}" for n in range(10))]
    splits = split_prompts(prompts, SHARES, seed)
    assert sorted(row for rows in splits.values() for row in rows) == list(range(len(prompts)))
    sides = [{prompts[row] for row in rows} for rows in splits.values()]
    assert sum(map(len, sides)) == len(set(prompts))
    assert 1 <= len(splits["test"]) <= len(prompts) * 0.1


def test_counts_beside_shares_are_exact() -> None:
    splits = split_prompts([str(n) for n in range(100)], {"train": 0.5, "validation": 0, "test": 7}, 17)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 50, "validation": 0, "test": 7}


def test_too_few_rows_for_shares_shows_the_arithmetic() -> None:
    with pytest.raises(DataError, match=r"2 usable rows, but train 1 \(share 0\.8\) \+ validation 1 .* = 3: 1 too few"):
        split_prompts(["a", "b"], SHARES, 17)
    with pytest.raises(DataError, match=r"no row is left for the split `test`.* 1 different prompts"):
        split_prompts(["a"] * 100, SHARES, 17)
