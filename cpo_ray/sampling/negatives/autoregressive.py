"""Autoregressive negatives (AN, the paper's section 3): sampled from the reference, top-k 50 at temperature 1.

What to ask an engine for and how to read its answers; `engine.py` does the asking.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from cpo_ray.config import SamplingConfig
from cpo_ray.sampling.negatives.context import Tokens
from cpo_ray.sampling.seeding import draw_seed

Ask = Callable[[int, int], Awaitable[list[Tokens]]]
"""(how many, the how-manieth time) -> as many samples of one row's prompt."""


class Samples(NamedTuple):
    """One row's samples, and what they took."""

    kept: list[Tokens]
    redraws: int  # samples thrown away
    tokens: int  # sampled, those thrown away included


async def sample_apart(ask: Ask, count: int, present: Sequence[Tokens], redraws: int) -> Samples:
    """`count` samples of one row, each asked for again while it equals one of `present` or an earlier one.

    At the most `redraws` times; what repeats then is kept.
    """
    kept: list[Tokens] = [[]] * count
    wanted = list(range(count))
    thrown = tokens = 0
    for attempt in range(1 + redraws):
        thrown += len(wanted) if attempt else 0
        drawn = await ask(len(wanted), attempt)
        tokens += sum(map(len, drawn))
        for place, sample in zip(wanted, drawn, strict=True):
            kept[place] = sample
        wanted = repeated(kept, present)
        if not wanted:
            break
    return Samples(kept, thrown, tokens)


def sampling_parameters(
    config: SamplingConfig, max_tokens: int, eos: int, seed: int, row_id: str, vocabulary: int, n: int, attempt: int
) -> dict[str, Any]:
    """Keywords of vLLM's SamplingParams for one row: n samples that share the prompt, sample j seeded by seed + j."""
    return {
        "n": n,
        "top_k": min(config.top_k, vocabulary),
        "temperature": config.temperature,
        "max_tokens": max_tokens,
        "stop_token_ids": [eos],
        "seed": draw_seed(seed, row_id, "autoregressive", 0, attempt) >> 1,  # room for the samples' own seeds
        "detokenize": False,
    }


def autoregressive_negative(token_ids: Sequence[int], finish_reason: str | None, eos: int) -> Tokens:
    """A sample as a candidate: it ends with EOS where the model stopped, without where it met the length limit."""
    tokens = list(token_ids)
    if finish_reason == "stop" and tokens[-1:] != [eos]:
        tokens.append(eos)
    return tokens


def repeated(samples: Sequence[Tokens], present: Sequence[Tokens]) -> list[int]:
    """Which of a row's samples equal one of `present`, the group's candidates so far, or an earlier sample."""
    seen = set(map(tuple, present))
    again = []
    for index, sample in enumerate(samples):
        if tuple(sample) in seen:
            again.append(index)
        seen.add(tuple(sample))
    return again
