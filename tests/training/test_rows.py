"""Rows that cannot be trained on are refused before the first step."""

import pytest

from cpo_ray.config import ObjectiveConfig
from cpo_ray.objective.cost import measure_group
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
    with pytest.raises(
        Refusal, match=r"permutation of 0\.\.7 with the gold first, or count .* they do not in rows row-5"
    ):
        read(world, tmp_path, with_row(5, rank=ranks))


def test_every_candidate_needs_a_rank_and_a_score(world, tmp_path):
    with pytest.raises(Refusal, match="row row-2 has 3 ranks, but 8 candidates"):
        read(world, tmp_path, with_row(2, rank=[0, 1, 2]))
    with pytest.raises(Refusal, match="row row-2 has 1 reference log-probs, but 8 candidates"):
        read(world, tmp_path, with_row(2, ref_logps=[0.0]))


def first_three(row):
    """The row with the first three of its candidates, the last two of which tie."""
    columns = ("candidate_kind", "candidate_ids", "candidate_text", "similarity", "ref_logps")
    return row | {name: row[name][:3] for name in columns} | {"rank": [0, 1, 1], "score": [3.0, 1.0, 1.0]}


def test_a_group_with_fewer_candidates_gets_copies_of_its_gold(world, tmp_path):
    def change(rows):
        return [first_three(row) if row["id"] == "row-2" else row for row in rows]

    rows = read(world, tmp_path, change)
    gold = rows.candidates[2][0]
    assert [len(group) for group in rows.candidates] == [8] * 32
    assert rows.candidates[2][3:] == [gold] * 5
    assert rows.kinds[2][3:] == ["gold"] * 5
    assert rows.ranks[2].tolist() == [0, 1, 1, 3, 4, 5, 6, 7]
    assert rows.ref_logps[2][3:].tolist() == [rows.ref_logps[2][0]] * 5
    assert rows.has_ties
    assert rows.sizes[2] == measure_group(rows.prompts[2], rows.candidates[2][:3])  # copies cost nothing


def test_scores_of_the_data_are_rewards_also_in_filled_groups(world, tmp_path):
    """A copy of the gold has its score, but is masked."""

    def change(rows):
        return [first_three(row) if row["id"] == "row-2" else row | {"score": [2.0] * 8} for row in rows]

    objective = ObjectiveConfig(loss="infonca", scores="given")
    rows = read(world, tmp_path, change, objective=objective)
    assert rows.rewards[2].tolist() == [3.0, 1.0, 1.0, *[3.0] * 5]
    with pytest.raises(
        Refusal, match=r"scores: given needs a score of every candidate; there is none in rows row-1\. "
    ):
        read(world, tmp_path, lambda rows: [first_three(rows[0]), rows[1]], objective=objective)


def test_without_answers_of_the_data_there_are_no_ties(world):
    task = make_task(world)
    assert not TrainingRows.read(task.rows, task).has_ties


def test_a_group_longer_than_a_packed_row_names_the_row_and_the_key(world, tmp_path):
    with pytest.raises(Refusal, match=r"group of row row-\d+ needs \d+ tokens, but training.row_tokens is 16"):
        read(world, tmp_path, lambda rows: rows, row_tokens=16)


def test_the_only_candidate_of_an_example_is_the_gold(world):
    task = make_task(world, objective=False)
    rows = TrainingRows.read(task.rows, task, 4)
    assert [len(group) for group in rows.candidates] == [1] * 4
    assert rows.ref_logps.size == 0
    assert rows.sizes[0].tokens == len(rows.prompts[0]) + len(rows.candidates[0][0]) - 1
