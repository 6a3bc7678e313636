"""The kinds of negatives that are drawn from a row and its batch alone: two shipped ones, and those of the user.

Such a kind is one function, `draw(source, rng)`, that gives one negative: tokens, or text, which is tokenized as the
data stage does it. What all kinds share is done here: the seeds, drawing again what the group has already, the counts.
`autoregressive`, `meanfield` and `unhelpful` need a model; an actor or a client of their own makes them.
"""

import hashlib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

import numpy as np

from cpo_ray.config import SamplingConfig
from cpo_ray.errors import ConfigError
from cpo_ray.sampling.negatives.batch import batch_negative
from cpo_ray.sampling.negatives.context import Source, Tokens
from cpo_ray.sampling.negatives.truncation import truncation_negative
from cpo_ray.sampling.seeding import generator

Draw = Callable[[Source, np.random.Generator], Tokens | str]

DRAWN: dict[str, Draw] = {"batch": batch_negative, "truncation": truncation_negative}


@dataclass(frozen=True)
class Limits:
    """What a candidate must keep to, and how text becomes one."""

    max_tokens: int  # EOS included
    eos: int
    vocabulary: int
    encode: Callable[[str], Tokens]


@dataclass
class Drawn:
    """The negatives of one kind for one row, and how many draws were thrown away for them."""

    negatives: list[Tokens] = field(default_factory=list)
    redraws: int = 0
    thrown_tokens: int = 0


def load_kinds(config: SamplingConfig) -> dict[str, Draw]:
    """The functions of all wanted kinds that are drawn here, in the order in which they are drawn.

    Raises ConfigError for a module that cannot be imported or has no such function.
    """
    wanted = config.negatives.by_kind
    own = {name: _load(name, reference) for name, reference in config.kinds.items() if name in wanted}
    return {name: draw for name, draw in DRAWN.items() if name in wanted} | own


def hash_kinds(config: SamplingConfig) -> dict[str, str]:
    """SHA-256 of the file that each of the user's wanted kinds is written in: groups are made anew when it changes."""
    wanted = config.negatives.by_kind
    files = {name: _import(name, reference).__file__ for name, reference in config.kinds.items() if name in wanted}
    return {name: hashlib.sha256(Path(file).read_bytes()).hexdigest() for name, file in files.items() if file}


def draw_kind(
    kind: str,
    draw: Draw,
    count: int,
    source: Source,
    present: Sequence[Tokens],
    seed: int,
    redraws: int,
    limits: Limits,
) -> Drawn:
    """Draw `count` negatives. One that equals the gold, an earlier one or one of `present` is drawn again.

    After `redraws` such attempts it is kept. Negative j depends neither on `count` nor on anything but (seed, row, kind, j,
    attempt) and the candidates before it. Raises ConfigError for a negative that is no continuation.
    """
    drawn = Drawn()
    source = replace(source, taken=drawn.negatives)
    seen = {tuple(source.gold), *map(tuple, present)}
    for index in range(count):
        for attempt in range(1 + redraws):
            rng = generator(seed, source.id, kind, index, attempt)
            negative = _check(kind, source.id, draw(source, rng), limits)
            if tuple(negative) not in seen or attempt == redraws:
                break
            drawn.redraws += 1
            drawn.thrown_tokens += len(negative)
        drawn.negatives.append(negative)
        seen.add(tuple(negative))
    return drawn


def _check(kind: str, row_id: str, negative: Tokens | str, limits: Limits) -> Tokens:
    """The negative as a continuation: tokens of which the last, and it alone, is EOS."""
    if isinstance(negative, str):
        return limits.encode(negative)
    if kind in DRAWN:
        return negative
    tokens = [int(token) for token in negative]
    ends = tokens.count(limits.eos) == 1 and tokens[-1] == limits.eos
    if ends and len(tokens) <= limits.max_tokens and min(tokens) >= 0 and max(tokens) < limits.vocabulary:
        return tokens
    raise ConfigError(
        f"sampling.negatives.{kind}: the negative for row {row_id} is no continuation: it must be text, or at most "
        f"{limits.max_tokens} tokens below {limits.vocabulary} that end with the only EOS ({limits.eos}); it was {tokens[:20]}"
    )


def _load(name: str, reference: str) -> Draw:
    function = reference.partition(":")[2]
    draw = getattr(_import(name, reference), function, None)
    if not callable(draw):
        raise ConfigError(f"sampling.kinds.{name}: {reference} is no function: {draw!r}")
    return draw


def _import(name: str, reference: str) -> ModuleType:
    try:
        return importlib.import_module(reference.partition(":")[0])
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"sampling.kinds.{name}: {reference} cannot be imported ({error}). Install its package on every node, or put "
            "the folder that holds it on PYTHONPATH."
        ) from None
