"""Repeated draws and weight switching of the vLLM actor, without the engine."""

import asyncio

from cpo_ray.inference.weight_switching import WeightSwitcher
from cpo_ray.sampling.time_shares import TimeShares
from cpo_ray.sampling.units import empty_unit, read_units, write_units
from cpo_ray.sampling.vllm_sampler import VllmSampler
from tests.sampling.example_rows import EOS, make_config

GOLD = [1, 2, EOS]


def group(row_id):
    empty = {"prompt": "p", "candidate_text": [], "similarity": [], "rank": [], "ref_logps": []}
    candidates = {"candidate_kind": ["gold", "batch"], "candidate_ids": [GOLD, [3, EOS]]}
    return {"id": row_id, "prompt_ids": [5, 6], **candidates, **empty}


def unit_of(*row_ids, seed=17, policy=""):
    return {**empty_unit(0, seed), "policy": policy, "groups": [group(row_id) for row_id in row_ids]}


def actor(redraws=3, count=2, kinds=None, **negatives):
    sampler = VllmSampler.__new__(VllmSampler)
    counts = {"autoregressive": count, "batch": 1, "meanfield": 0} | negatives
    sampler.config = make_config(negatives=counts, kinds=kinds or {}, redraws=redraws)
    sampler.shares = TimeShares()
    sampler.loaded = [""]

    async def change(policy):
        await asyncio.sleep(0)
        sampler.loaded.append(policy)

    sampler.switcher = WeightSwitcher("", change)
    return sampler


async def call(sampler, *units):
    """The units that one call of the actor returns."""
    (table,) = [table async for table in sampler(write_units(list(units)))]
    return read_units(table)


def sample(answers, redraws=3, count=2):
    """answers[row]: the samples of that row, draw after draw. Returns the unit and the requests of each row."""
    sampler = actor(redraws, count)
    streams = {f"row{row}": iter(samples) for row, samples in enumerate(answers)}
    asked = {row: [] for row in streams}

    async def generate(decodings, seed, group, kind, count, attempt):
        await asyncio.sleep(0)
        asked[group["id"]].append((seed, attempt, count))
        return [next(streams[group["id"]]) for _ in range(count)]

    sampler._generate = generate
    (unit,) = asyncio.run(call(sampler, unit_of(*streams)))
    return unit, list(asked.values())


def test_only_repeated_samples_are_drawn_again():
    fresh = [[4, EOS], [5, EOS]]
    twice = [[6, EOS], [6, EOS], [7, EOS]]
    unlucky = [GOLD, [3, EOS], [8, EOS], [8, EOS], [9, EOS]]
    unit, asked = sample([fresh, twice, unlucky])
    assert asked == [[(17, 0, 2)], [(17, 0, 2), (17, 1, 1)], [(17, 0, 2), (17, 1, 2), (17, 2, 1)]]
    samples = [group["candidate_ids"][2:] for group in unit["groups"]]
    assert samples == [[[4, EOS], [5, EOS]], [[6, EOS], [7, EOS]], [[8, EOS], [9, EOS]]]
    (work,) = unit["work"]
    assert (work["kind"], work["redraws"], work["tokens"]) == ("autoregressive", 1 + 2 + 1, 4 + 6 + 3 + 2 * 4)


def test_a_sample_that_repeats_in_every_attempt_is_kept_and_counted():
    unit, asked = sample([[GOLD] * 8], redraws=3)
    assert len(asked[0]) == 4
    assert unit["groups"][0]["candidate_ids"][2:] == [GOLD, GOLD]
    assert unit["work"][0]["redraws"] == 6
    assert unit["groups"][0]["candidate_kind"] == ["gold", "batch", "autoregressive", "autoregressive"]
    assert len(sample([[GOLD] * 2], redraws=0)[1][0]) == 1


def test_the_kinds_of_a_row_are_sampled_at_once_and_only_those_with_randomness_again():
    """Greedy equals a batch negative. The hot sample equals greedy, then the autoregressive one, and then neither."""
    answers = {
        "greedy": [[[3, EOS]]],
        "autoregressive": [[[4, EOS]]],
        "hot": [[[3, EOS]], [[4, EOS]], [[5, 6, EOS]]],
    }
    sampler = actor(count=1, kinds={"hot": {"temperature": 1.4}}, greedy=1, hot=1)
    asked, together = [], asyncio.Barrier(3)

    async def generate(decodings, seed, group, kind, count, attempt):
        if attempt == 0:
            await asyncio.wait_for(together.wait(), 5)  # passes only when all three kinds are requested
        asked.append((kind, decodings[kind].temperature, attempt, count))
        return answers[kind][attempt]

    sampler._generate = generate
    (unit,) = asyncio.run(call(sampler, unit_of("row")))
    assert sorted(asked) == [
        ("autoregressive", 1.0, 0, 1),
        ("greedy", 0.0, 0, 1),
        ("hot", 1.4, 0, 1),
        ("hot", 1.4, 1, 1),
        ("hot", 1.4, 2, 1),
    ]
    (row,) = unit["groups"]
    assert row["candidate_kind"][2:] == ["greedy", "autoregressive", "hot"]
    assert row["candidate_ids"][2:] == [[3, EOS], [4, EOS], [5, 6, EOS]]
    work = {entry["kind"]: entry for entry in unit["work"]}
    assert {kind: (entry["redraws"], entry["tokens"]) for kind, entry in work.items()} == {
        "greedy": (0, 2),
        "autoregressive": (0, 2),
        "hot": (2, 2 + 2 + 3),
    }
    speeds = [entry["tokens"] / entry["seconds"] for entry in work.values()]
    assert max(speeds) < 1.001 * min(speeds)  # kinds share the engine's time by their tokens


def test_a_greedy_answer_that_equals_the_gold_is_requested_once_and_kept():
    sampler = actor(count=0, greedy=1)
    asked = []

    async def generate(decodings, seed, group, kind, count, attempt):
        asked.append((kind, count))
        return [GOLD]

    sampler._generate = generate
    (unit,) = asyncio.run(call(sampler, unit_of("row")))
    assert asked == [("greedy", 1)]
    assert unit["groups"][0]["candidate_ids"][2:] == [GOLD]


def test_no_row_waits_for_another_and_no_unit_for_another():
    """The first unit's slow row is answered only after the second unit is complete."""
    sampler = actor()

    async def work():
        released = asyncio.Event()

        async def generate(decodings, seed, group, kind, count, attempt):
            if group["id"] == "slow":
                await released.wait()
            return [[4, EOS], [5, EOS]][:count]

        sampler._generate = generate
        first = asyncio.create_task(call(sampler, unit_of("quick", "slow")))
        (second,) = await asyncio.wait_for(call(sampler, unit_of("other")), 5)
        assert not first.done()
        released.set()
        return [*await first, second]

    first, second = asyncio.run(work())
    assert [len(group["candidate_ids"]) for unit in (first, second) for group in unit["groups"]] == [4, 4, 4]


def test_each_unit_is_sampled_with_its_policys_weights_and_its_seed():
    """Policies are loaded in the order of their first request; a late unit of an older policy is sampled from that policy."""
    sampler = actor(count=1)
    used = []

    async def generate(decodings, seed, group, kind, count, attempt):
        before = sampler.loaded[-1]
        await asyncio.sleep(0.001)
        assert sampler.loaded[-1] == before, "the weights changed during a request"
        used.append((group["id"], seed, before))
        return [[4, EOS]]

    sampler._generate = generate
    policies = ["", "step10", "", "step20", "step10", "step20"]

    async def work():
        units = [unit_of(f"row{n}", seed=n, policy=policy) for n, policy in enumerate(policies)]
        return await asyncio.gather(*(call(sampler, unit) for unit in units))

    asyncio.run(work())
    assert sorted(used) == [(f"row{n}", n, policy) for n, policy in enumerate(policies)]
    assert sampler.loaded == ["", "step10", "", "step20"]
