"""How the engine's actor draws again and whose turn it is, with the engine itself left out."""

import asyncio

import pytest

from cpo_ray.inference.weight_switching import Turns
from cpo_ray.sampling.time_shares import Shares
from cpo_ray.sampling.units import begin_unit, read_units, write_units
from cpo_ray.sampling.vllm_sampler import Engine
from tests.sampling.made_rows import EOS, make_config

GOLD = [1, 2, EOS]


def group(row_id):
    empty = {"prompt": "p", "candidate_text": [], "similarity": [], "rank": [], "ref_logps": []}
    made = {"candidate_kind": ["gold", "batch"], "candidate_ids": [GOLD, [3, EOS]]}
    return {"id": row_id, "prompt_ids": [5, 6], **made, **empty}


def unit_of(*row_ids, seed=17, policy=""):
    return {**begin_unit(0, seed), "policy": policy, "groups": [group(row_id) for row_id in row_ids]}


def actor(redraws=3, count=2):
    made = Engine.__new__(Engine)
    made.config = make_config(negatives={"autoregressive": count, "batch": 1, "meanfield": 0}, redraws=redraws)
    made.shares = Shares()
    made.loaded = [""]

    async def change(policy):
        await asyncio.sleep(0)
        made.loaded.append(policy)

    made.turns = Turns("", change)
    return made


async def called(engine, *units):
    """What one call of the actor gives."""
    (table,) = [table async for table in engine(write_units(list(units)))]
    return read_units(table)


def sample(answers, redraws=3, count=2):
    """`answers[row]`: what the model gives for that row, draw after draw. Returns the unit and what each row asked for."""
    engine = actor(redraws, count)
    streams = {f"row{row}": iter(each) for row, each in enumerate(answers)}
    asked = {row: [] for row in streams}

    async def generate(seed, group, count, attempt):
        await asyncio.sleep(0)
        asked[group["id"]].append((seed, attempt, count))
        return [next(streams[group["id"]]) for _ in range(count)]

    engine._generate = generate
    (unit,) = asyncio.run(called(engine, unit_of(*streams)))
    return unit, list(asked.values())


def test_only_what_repeats_is_sampled_again():
    fresh = [[4, EOS], [5, EOS]]
    twice = [[6, EOS], [6, EOS], [7, EOS]]
    unlucky = [GOLD, [3, EOS], [8, EOS], [8, EOS], [9, EOS]]
    unit, asked = sample([fresh, twice, unlucky])
    assert asked == [[(17, 0, 2)], [(17, 0, 2), (17, 1, 1)], [(17, 0, 2), (17, 1, 2), (17, 2, 1)]]
    made = [group["candidate_ids"][2:] for group in unit["groups"]]
    assert made == [[[4, EOS], [5, EOS]], [[6, EOS], [7, EOS]], [[8, EOS], [9, EOS]]]
    (work,) = unit["work"]
    assert (work["kind"], work["redraws"], work["tokens"]) == ("autoregressive", 1 + 2 + 1, 4 + 6 + 3 + 2 * 4)


def test_what_repeats_to_the_end_is_kept_and_counted():
    unit, asked = sample([[GOLD] * 8], redraws=3)
    assert len(asked[0]) == 4
    assert unit["groups"][0]["candidate_ids"][2:] == [GOLD, GOLD]
    assert unit["work"][0]["redraws"] == 6
    assert unit["groups"][0]["candidate_kind"] == ["gold", "batch", "autoregressive", "autoregressive"]
    assert len(sample([[GOLD] * 2], redraws=0)[1][0]) == 1


def test_no_row_waits_for_another_and_no_unit_for_another():
    """The first unit's slow row is answered only once the second unit has come back whole."""
    engine = actor()

    async def work():
        released = asyncio.Event()

        async def generate(seed, group, count, attempt):
            if group["id"] == "slow":
                await released.wait()
            return [[4, EOS], [5, EOS]][:count]

        engine._generate = generate
        first = asyncio.create_task(called(engine, unit_of("quick", "slow")))
        (second,) = await asyncio.wait_for(called(engine, unit_of("other")), 5)
        assert not first.done()
        released.set()
        return [*await first, second]

    first, second = asyncio.run(work())
    assert [len(group["candidate_ids"]) for unit in (first, second) for group in unit["groups"]] == [4, 4, 4]


def test_each_unit_is_sampled_with_its_policys_weights_and_its_seed():
    """In the order in which policies are first asked for; a retry of an older policy's unit comes after a newer one's."""
    engine = actor(count=1)
    used = []

    async def generate(seed, group, count, attempt):
        before = engine.loaded[-1]
        await asyncio.sleep(0.001)
        assert engine.loaded[-1] == before, "the weights changed under a row's feet"
        used.append((group["id"], seed, before))
        return [[4, EOS]]

    engine._generate = generate
    policies = ["", "step10", "", "step20", "step10", "step20"]

    async def work():
        units = [unit_of(f"row{n}", seed=n, policy=policy) for n, policy in enumerate(policies)]
        return await asyncio.gather(*(called(engine, unit) for unit in units))

    asyncio.run(work())
    assert sorted(used) == [(f"row{n}", n, policy) for n, policy in enumerate(policies)]
    assert engine.loaded == ["", "step10", "", "step20"]


def test_units_under_way_at_once_share_the_actors_time():
    now = [0.0]
    shares = Shares(lambda: now[0])
    now[0] = 5.0  # nothing is under way: nobody's
    with shares.unit() as first:
        now[0] = 7.0
        with shares.unit() as second:
            now[0] = 11.0
            assert (first(), second()) == (4.0, 2.0)
        now[0] = 12.0
        assert first() == 5.0
    now[0] = 20.0
    with shares.unit() as third:
        now[0] = 21.0
        assert third() == pytest.approx(1.0)
