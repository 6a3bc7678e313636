"""Rows that cannot be trained on are refused before the first step."""

import pytest

from cpo_ray.training.rows import TrainingRows
from cpo_ray.training.task import Refusal
from tests.training.world import make_task, write_groups


def read(world, tmp_path, change, **settings):
    write_groups(world / "tied", tmp_path / "groups", change=change)
    task = make_task(world, groups=tmp_path / "groups", **settings)
    return TrainingRows.read(task.rows, task)


def with_row(number, **columns):
    return lambda rows: [row | columns if i == number else row for i, row in enumerate(rows)]


def test_reference_scores_must_be_finite(world, tmp_path):
    broken = with_row(3, ref_logps=[float("nan")] * 8)
    with pytest.raises(Refusal, match="reference log-probs are not finite in rows row-3"):
        read(world, tmp_path, broken)


@pytest.mark.parametrize("ranks", [[0, 1, 1, 2, 3, 4, 5, 6], [1, 0, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 8]])
def test_ranks_must_be_a_permutation_with_the_gold_first(world, tmp_path, ranks):
    with pytest.raises(Refusal, match=r"permutation of 0\.\.7 with the gold first; they are not in rows row-5"):
        read(world, tmp_path, with_row(5, rank=ranks))


def test_all_groups_must_have_the_same_k(world, tmp_path):
    with pytest.raises(Refusal, match="row row-2 has 3 ranks, row row-0 has 8"):
        read(world, tmp_path, with_row(2, rank=[0, 1, 2]))


def test_a_group_longer_than_a_packed_row_names_the_row_and_the_key(world, tmp_path):
    with pytest.raises(Refusal, match=r"group of row row-\d+ needs \d+ tokens, but training.row_tokens is 16"):
        read(world, tmp_path, lambda rows: rows, row_tokens=16)


def test_the_only_candidate_of_an_example_is_the_gold(world):
    task = make_task(world, objective=False)
    rows = TrainingRows.read(task.rows, task, 4)
    assert [len(group) for group in rows.candidates] == [1] * 4
    assert rows.ref_logps.size == 0
    assert rows.sizes[0].tokens == len(rows.prompts[0]) + len(rows.candidates[0][0]) - 1
