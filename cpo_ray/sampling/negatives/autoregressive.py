"""Autoregressive negatives (AN, the paper's section 3): sampled from the reference, top-k 50 at temperature 1.

The sampling parameters and the post-processing of samples are here; `sampling/vllm_sampler.py` runs the engine.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from cpo_ray.config import SamplingConfig
from cpo_ray.records import Tokens
from cpo_ray.sampling.seeding import draw_seed

Generate = Callable[[int, int], Awaitable[list[Tokens]]]
"""(number of samples, attempt) -> that many samples of one row's prompt."""


class Samples(NamedTuple):
    """The samples of one row, and their cost."""

    kept: list[Tokens]
    redraws: int  # samples thrown away
    tokens: int  # sampled, including the samples thrown away


async def sample_distinct(generate: Generate, count: int, present: Sequence[Tokens], redraws: int) -> Samples:
    """`count` samples of one row. A sample that equals one of `present` or an earlier sample is drawn again.

    After `redraws` attempts the sample is kept as it is.
    """
    kept: list[Tokens] = [[]] * count
    wanted = list(range(count))
    discarded = tokens = 0
    for attempt in range(1 + redraws):
        discarded += len(wanted) if attempt else 0
        drawn = await generate(len(wanted), attempt)
        tokens += sum(map(len, drawn))
        for index, sample in zip(wanted, drawn, strict=True):
            kept[index] = sample
        wanted = repeated(kept, present)
        if not wanted:
            break
    return Samples(kept, discarded, tokens)


def sampling_parameters(
    config: SamplingConfig,
    max_tokens: int,
    eos: int,
    seed: int,
    row_id: str,
    vocabulary: int,
    n: int,
    attempt: int,
    other_eos: Sequence[int] = (),
) -> dict[str, Any]:
    """Keyword arguments of vLLM's SamplingParams for one row: n samples of one prompt, sample j seeded by seed + j.

    other_eos: tokens besides `eos` that end a generation, by the model's generation_config.json.
    """
    return {
        "n": n,
        "top_k": min(config.top_k, vocabulary),
        "temperature": config.temperature,
        "max_tokens": max_tokens,
        "stop_token_ids": [eos, *other_eos],
        "seed": draw_seed(seed, row_id, "autoregressive", 0, attempt) >> 1,  # seed + j must not overflow
        "detokenize": False,
    }


def sample_limit(gold: Tokens, eos: int, max_tokens: int) -> int:
    """Maximum tokens of a sample: `max_tokens`, or as many as the gold has if it was cut, i.e. has no EOS.

    Sample and gold are then beginnings of the same length. A longer sample could contain all of the gold and go on as the
    truth does, and would count as its negative.
    """
    return max_tokens if gold[-1] == eos else len(gold)


def autoregressive_negative(
    token_ids: Sequence[int], finish_reason: str | None, eos: int, other_eos: Sequence[int] = ()
) -> Tokens:
    """A sample as a candidate: with EOS if the model stopped, without EOS if it reached the length limit.

    A sample that ended with one of `other_eos` ends with `eos` instead, as the golds do.
    """
    tokens = list(token_ids)
    if finish_reason != "stop":
        return tokens
    return [*(tokens[:-1] if tokens and tokens[-1] in {eos, *other_eos} else tokens), eos]


def repeated(samples: Sequence[Tokens], present: Sequence[Tokens]) -> list[int]:
    """Indices of samples that equal an earlier sample or one of `present`, the candidates that the group already has."""
    seen = set(map(tuple, present))
    again = []
    for index, sample in enumerate(samples):
        if tuple(sample) in seen:
            again.append(index)
        seen.add(tuple(sample))
    return again
