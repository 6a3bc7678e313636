"""Which GPUs engines, scorers and embedders get while groups are sampled.

With enough GPUs each actor has its own. With fewer, scorer and embedder share a card; with fewer still, engine and scorer share
it if both fit into its memory, and otherwise work in two phases (`sampling/phases.py`).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from cpo_ray.config import RunConfig, SamplingConfig
from cpo_ray.config.inference import ALONE
from cpo_ray.planning.card_memory import GIB, SamplingMemory

USABLE = 0.95  # of a card's memory; the rest is left to fragmentation and the driver


@dataclass(frozen=True)
class CardSpace:
    """Bytes of a card: all of them, and those that this run may use."""

    total: float
    usable: float

    def share(self, amount: float) -> float:
        """The hundredths of the card that hold so many bytes."""
        return math.ceil(100 * amount / self.total) / 100

    @property
    def alone(self) -> float:
        """Share for an engine that has the card for itself."""
        return min(ALONE, math.floor(100 * self.usable / self.total) / 100)


@dataclass(frozen=True)
class SamplingLayout:
    """GPUs of each engine (0: none is needed), scorer and embedder (0: on the CPU).

    cards: that scorers and embedders share, None if each has its own. cache: the KV cache of an engine on a shared card, bytes.
    """

    engine: float
    scorer: float
    embedder: float
    in_phases: bool = False
    cards: int | None = None
    cache: float | None = None

    @property
    def needed(self) -> float:
        """GPUs at the same time."""
        both = self.scorer + self.embedder
        return max(self.engine, both) if self.in_phases else self.engine + both


def lay_out(config: RunConfig, gpus: int, memory: SamplingMemory | None, space: CardSpace | None) -> SamplingLayout:
    """The layout for `gpus` GPUs. memory, space: None if the model's size or that of a card is unknown.

    It may need more GPUs than there are, which `place` then refuses.
    """
    sampling, each = config.sampling, config.cluster.gpus_per_worker
    cards = sampling.engine.tensor_parallel if sampling.samples else 0
    phases = bool(sampling.in_phases and cards)
    whole = SamplingLayout(float(cards), each or 1.0, each or 1.0, phases)
    if each is not None or gpus >= whole.needed:
        return whole  # each actor has its own; also where the file says what each gets
    pair = _share_card(memory, space)
    if cards == 0 or gpus > cards:
        return replace(pair, engine=float(cards), in_phases=phases, cards=gpus if phases else gpus - cards)
    if sampling.in_phases is not True and gpus == cards == 1:
        beside = _beside(memory, space)
        if beside is not None:
            return beside
    if sampling.in_phases is False or sampling.stream:
        return replace(pair, engine=float(cards), cards=1)
    return replace(pair, engine=float(cards), in_phases=True, cards=gpus)


def _share_card(memory: SamplingMemory | None, space: CardSpace | None) -> SamplingLayout:
    """Scorer and embedder on one card, or the embedder on the CPU if it does not fit there or nothing is known."""
    if memory is None or space is None or memory.embedder is None or memory.scorer + memory.embedder > space.usable:
        return SamplingLayout(0.0, 1.0, 0.0)
    embedder = space.share(memory.embedder)
    return SamplingLayout(0.0, round(1 - embedder, 2), embedder)


def _beside(memory: SamplingMemory | None, space: CardSpace | None) -> SamplingLayout | None:
    """Engine, scorer and embedder on one card, if they fit. The engine's cache takes what the others leave and it can use."""
    if memory is None or space is None:
        return None
    for embedder in (memory.embedder or 0.0, 0.0):
        left = space.usable - memory.scorer - embedder
        if memory.smallest_engine <= left:
            engine = min(left, memory.largest_engine)
            return SamplingLayout(
                space.share(engine),
                space.share(memory.scorer),
                space.share(embedder),
                cards=1,
                cache=engine - memory.engine,
            )
    return None


def with_layout(sampling: SamplingConfig, layout: SamplingLayout, space: CardSpace | None) -> SamplingConfig:
    """The section with the layout in place of `auto`. What the file sets stays."""
    update: dict[str, object] = {"in_phases": layout.in_phases}
    for name, gpus in (("engines", layout.engine), ("scorers", layout.scorer), ("rankers", layout.embedder)):
        pool = getattr(sampling, name)
        maximum = pool.maximum
        if name != "engines" and layout.cards is not None and maximum is None:
            maximum = max(pool.minimum, layout.cards)
        own = gpus if pool.gpus is None else pool.gpus
        update[name] = pool.model_copy(update={"gpus": own or (None if name == "engines" else 0.0), "maximum": maximum})
    engine = sampling.engine
    if layout.cache is not None:
        engine = engine.model_copy(update={"kv_cache_gib": max(0.1, math.floor(10 * layout.cache / GIB) / 10)})
    if engine.gpu_memory_utilization is None:
        share = layout.engine if 0 < layout.engine < 1 else space.alone if space is not None else ALONE
        engine = engine.model_copy(update={"gpu_memory_utilization": share})
    return sampling.model_copy(update={**update, "engine": engine})


def describe_layout(sampling: SamplingConfig, streamed: bool) -> Iterator[str]:
    """A line per phase of a section without `auto`."""
    engine, scorer, ranker = (pool.gpus or 0.0 for pool in (sampling.engines, sampling.scorers, sampling.rankers))
    last = f"a scorer has {amount(scorer)}, an embedder {amount(ranker) if ranker else 'none (it computes on the CPU)'}"
    stage = "sampling, during cpo" if streamed else "sampling"
    if not sampling.samples:
        yield f"{stage}: {last}"
        return
    first = f"an engine has {amount(engine)} ({sampling.engine.memory_share:.0%} of the memory)"
    if sampling.in_phases:
        yield f"{stage}, first: {first}"
        yield f"{stage}, when the engines have ended: {last}"
    else:
        yield f"{stage}, all at once: {first}, {last}"


def count(number: int, thing: str) -> str:
    """`1 engine`, `2 engines`."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def amount(gpus: float) -> str:
    """`0.25 of a GPU`, `1 GPU`, `2 GPUs`."""
    return f"{gpus:g} of a GPU" if 0 < gpus < 1 else f"{gpus:g} GPU{'' if gpus == 1 else 's'}"
