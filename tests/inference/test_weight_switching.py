import asyncio
import random
from typing import Any

import pytest

from cpo_ray.inference.weight_switching import WeightSwitcher


class Engine:
    """Fails if a request runs during a switch, or with another model's weights."""

    def __init__(self, failing: str = "") -> None:
        self.switches: list[str] = []
        self.inside: list[str] = []
        self.failing = failing
        self.switcher = WeightSwitcher("a", self.switch)

    async def switch(self, model: str) -> None:
        assert self.inside == []
        await asyncio.sleep(0)
        if model == self.failing:
            raise RuntimeError("half of the weights are the new ones")
        self.switches.append(model)
        assert self.inside == []

    async def ask(self, model: str, steps: int = 3) -> str:
        async with self.switcher.using(model):
            self.inside.append(model)
            for _ in range(steps):
                assert set(self.inside) == {self.switcher.loaded} == {model}
                await asyncio.sleep(0)
            self.inside.remove(model)
        return model


def test_requests_for_one_model_run_together() -> None:
    async def work() -> Any:
        engine = Engine()
        await asyncio.gather(*(engine.ask("a") for _ in range(5)))
        return engine.switches

    assert asyncio.run(work()) == []


def test_each_request_runs_with_its_own_weights_and_few_switches() -> None:
    async def work() -> Any:
        engine = Engine()
        asked = list("abcabcabc")
        return engine, asked, await asyncio.gather(*(engine.ask(model) for model in asked))

    engine, asked, answered = asyncio.run(work())
    assert answered == asked
    assert engine.switches == ["b", "c", "a"]


def test_a_steady_stream_for_one_model_does_not_starve_another() -> None:
    async def work() -> Any:
        engine = Engine()

        async def stream() -> None:
            for _ in range(200):
                await engine.ask("a", 1)

        streams = [asyncio.create_task(stream()) for _ in range(3)]
        await asyncio.sleep(0)
        other = asyncio.create_task(engine.ask("b"))
        await other
        early = not any(task.done() for task in streams)
        await asyncio.gather(*streams)
        return early

    assert asyncio.run(work())


@pytest.mark.parametrize("seed", range(20))
def test_cancelled_requests_block_no_other(seed: int) -> None:
    async def work() -> Any:
        draw, engine = random.Random(seed), Engine()

        async def ask(model: str) -> None:
            async with engine.switcher.using(model):
                for _ in range(draw.randrange(6)):
                    await asyncio.sleep(0)

        tasks = []
        for _ in range(60):
            tasks.append(asyncio.create_task(ask(draw.choice("abc"))))
            if draw.random() < 0.5:
                await asyncio.sleep(0)
            if draw.random() < 0.5:
                draw.choice(tasks).cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        assert (engine.switcher.running, len(engine.switcher.waiting)) == (0, 0)
        return await asyncio.wait_for(engine.ask(draw.choice("abc")), 5)

    assert asyncio.run(work()) in set("abc")


def test_a_failed_switch_is_raised_by_all_later_requests() -> None:
    async def work() -> Any:
        engine = Engine(failing="b")
        first = await asyncio.gather(engine.ask("b"), engine.ask("b"), engine.ask("c"), return_exceptions=True)
        later = await asyncio.gather(engine.ask("a"), return_exceptions=True)
        return first + later, engine.switcher.failure

    answers, failure = asyncio.run(work())
    assert failure is not None
    assert answers == [failure] * 4
