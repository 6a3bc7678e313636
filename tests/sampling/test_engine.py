"""How the engine's actor draws again, with the engine itself left out."""

from cpo_ray.sampling.engine import Engine
from cpo_ray.sampling.units import begin_unit
from tests.sampling.made_rows import EOS, make_config

GOLD = [1, 2, EOS]


def group(row_id):
    return {"id": row_id, "candidate_kind": ["gold", "batch"], "candidate_ids": [GOLD, [3, EOS]]}


def sample(answers, redraws=3, count=2):
    """`answers[row]`: what the model gives for that row, draw after draw. Returns the unit and what was asked for."""
    actor = Engine.__new__(Engine)
    actor.config = make_config(negatives={"autoregressive": count, "batch": 1, "meanfield": 0}, redraws=redraws)
    streams, asked = [iter(row) for row in answers], []

    def generate(groups, wanted, attempt):
        asked.append((attempt, {row: len(places) for row, places in wanted.items()}))
        return {row: [next(streams[row]) for _ in places] for row, places in wanted.items()}

    actor._generate = generate
    unit = {**begin_unit(0, 17), "groups": [group(f"row{row}") for row in range(len(answers))]}
    actor._sample([unit])
    return unit, asked


def test_only_what_repeats_is_sampled_again():
    fresh = [[4, EOS], [5, EOS]]
    twice = [[6, EOS], [6, EOS], [7, EOS]]
    unlucky = [GOLD, [3, EOS], [8, EOS], [8, EOS], [9, EOS]]
    unit, asked = sample([fresh, twice, unlucky])
    assert asked == [(0, {0: 2, 1: 2, 2: 2}), (1, {1: 1, 2: 2}), (2, {2: 1})]
    made = [group["candidate_ids"][2:] for group in unit["groups"]]
    assert made == [[[4, EOS], [5, EOS]], [[6, EOS], [7, EOS]], [[8, EOS], [9, EOS]]]
    (work,) = unit["work"]
    assert (work["kind"], work["redraws"], work["tokens"]) == ("autoregressive", 1 + 2 + 1, 4 + 6 + 3 + 2 * 4)


def test_what_repeats_to_the_end_is_kept_and_counted():
    unit, asked = sample([[GOLD] * 8], redraws=3)
    assert len(asked) == 4
    assert unit["groups"][0]["candidate_ids"][2:] == [GOLD, GOLD]
    assert unit["work"][0]["redraws"] == 6
    assert unit["groups"][0]["candidate_kind"] == ["gold", "batch", "autoregressive", "autoregressive"]
    assert len(sample([[GOLD] * 2], redraws=0)[1]) == 1
