"""Kinds of negatives that need only a row and its batch: the shipped `batch` and `truncation`, and the user's own.

A kind is a function `draw(context, rng)` that returns one negative: token ids, or text, which is tokenized as in the data
stage. This module does what is common to all kinds: seeds, repeated draws, counts.
Autoregressive kinds (also `greedy`), `meanfield` and `unhelpful` need a model: the vLLM actor, the scorer and an API client
make them.
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
from cpo_ray.records import Tokens, without_eos
from cpo_ray.sampling.negatives.batch import batch_negative
from cpo_ray.sampling.negatives.context import NegativeContext
from cpo_ray.sampling.negatives.truncation import truncation_negative
from cpo_ray.sampling.seeding import generator

Draw = Callable[[NegativeContext, np.random.Generator], Tokens | str]

SHIPPED: dict[str, Draw] = {"batch": batch_negative, "truncation": truncation_negative}


@dataclass(frozen=True)
class Limits:
    """Limits of a candidate, and the tokenizer for kinds that return text."""

    max_tokens: int  # EOS included, if there is one
    eos: int
    vocabulary: int
    encode: Callable[[str], Tokens]


@dataclass
class Drawn:
    """The negatives of one kind for one row, and the draws thrown away for them."""

    negatives: list[Tokens] = field(default_factory=list)
    redraws: int = 0
    discarded_tokens: int = 0


def load_kinds(config: SamplingConfig) -> dict[str, Draw]:
    """The functions of all requested kinds that are drawn here, in drawing order.

    Raises ConfigError for a module that cannot be imported or lacks the function.
    """
    wanted = config.negatives.by_kind
    own = {name: _load(name, reference) for name, reference in config.functions.items()}
    return {name: draw for name, draw in SHIPPED.items() if name in wanted} | own


def hash_kinds(config: SamplingConfig) -> dict[str, str]:
    """SHA-256 of the source file of each requested kind of the user's: a changed file makes the groups stale."""
    files = {name: _import(name, reference).__file__ for name, reference in config.functions.items()}
    return {name: hashlib.sha256(Path(file).read_bytes()).hexdigest() for name, file in files.items() if file}


def draw_kind(
    kind: str,
    draw: Draw,
    count: int,
    context: NegativeContext,
    present: Sequence[Tokens],
    seed: int,
    redraws: int,
    limits: Limits,
) -> Drawn:
    """Draw `count` negatives. One that equals the gold, an earlier negative or one of `present` is drawn again.

    After `redraws` attempts it is kept as it is. Negative j depends only on (seed, row, kind, j, attempt) and on the candidates
    before it, not on `count`. Raises ConfigError for a negative that is not a valid continuation.
    """
    drawn = Drawn()
    context = replace(context, taken=drawn.negatives)
    seen = {tuple(context.gold), *map(tuple, present)}
    for index in range(count):
        for attempt in range(1 + redraws):
            rng = generator(seed, context.id, kind, index, attempt)
            negative = _check(kind, context, draw(context, rng), limits)
            if tuple(negative) not in seen or attempt == redraws:
                break
            drawn.redraws += 1
            drawn.discarded_tokens += len(negative)
        drawn.negatives.append(negative)
        seen.add(tuple(negative))
    return drawn


def _check(kind: str, context: NegativeContext, negative: Tokens | str, limits: Limits) -> Tokens:
    """The negative as a continuation: tokens that end with their only EOS, or that are cut and have none."""
    if isinstance(negative, str):
        return limits.encode(negative)
    if kind in SHIPPED:
        return negative
    tokens = [int(token) for token in negative]
    cut = {limits.max_tokens} | (set() if context.gold[-1] == limits.eos else {len(context.gold)})
    text = without_eos(tokens, limits.eos)
    ends = len(text) < len(tokens) or len(tokens) in cut
    fits = ends and limits.eos not in text and len(tokens) <= limits.max_tokens
    if fits and min(tokens) >= 0 and max(tokens) < limits.vocabulary:
        return tokens
    raise ConfigError(
        f"sampling.negatives.{kind}: the negative for row {context.id} is not a valid continuation: it must be text, or at "
        f"most {limits.max_tokens} tokens below {limits.vocabulary} that end with the only EOS ({limits.eos}), or without EOS "
        f"if it is cut to {' or '.join(map(str, sorted(cut)))} tokens; it was {tokens[:20]}"
    )


def _load(name: str, reference: str) -> Draw:
    function = reference.partition(":")[2]
    draw = getattr(_import(name, reference), function, None)
    if not callable(draw):
        raise ConfigError(f"sampling.kinds.{name}: {reference} is not a function: {draw!r}")
    return draw


def _import(name: str, reference: str) -> ModuleType:
    try:
        return importlib.import_module(reference.partition(":")[0])
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"sampling.kinds.{name}: {reference} cannot be imported ({error}). Install its package on every node, or put "
            "the folder that holds it on PYTHONPATH."
        ) from None
