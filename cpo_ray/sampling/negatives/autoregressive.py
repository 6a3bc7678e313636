"""Autoregressive negatives (AN, the paper's section 3): sampled from the reference, in the paper top-k 50 at temperature 1.

A group may have several kinds of them, each with parameters of its own (`SamplingConfig.sampled`). The sampling parameters and
the post-processing of samples are here; `sampling/vllm_sampler.py` runs the engine.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from cpo_ray.config import KindDecoding
from cpo_ray.records import Tokens
from cpo_ray.sampling.seeding import draw_seed

Generate = Callable[[str, int, int], Awaitable[list[Tokens]]]
"""(kind, number of samples, attempt) -> that many samples of one row's prompt."""


class Samples(NamedTuple):
    """The samples of one row, and their cost by kind."""

    kept: list[tuple[str, Tokens]]  # kind and tokens
    redraws: Counter[str]  # samples thrown away
    tokens: Counter[str]  # sampled, including the samples thrown away


async def sample_distinct(
    generate: Generate,
    counts: Mapping[str, int],
    present: Sequence[Tokens],
    redraws: int,
    fixed: Collection[str] = (),
) -> Samples:
    """`counts[kind]` samples of each kind for one row, all kinds at once, kept in the order of `counts`.

    A sample that equals one of `present` or an earlier sample is drawn again, unless its kind is in `fixed`, where a draw is
    always the same. After `redraws` attempts it is kept as it is.
    """
    kinds = [kind for kind, count in counts.items() for _ in range(count)]
    kept: list[Tokens] = [[]] * len(kinds)
    wanted = list(range(len(kinds)))
    discarded: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for attempt in range(1 + redraws):
        missing = Counter(kinds[index] for index in wanted)
        answers = await asyncio.gather(*(generate(kind, count, attempt) for kind, count in missing.items()))
        if attempt:
            discarded += missing
        drawn = dict(zip(missing, map(iter, answers), strict=True))
        for index in wanted:
            kept[index] = next(drawn[kinds[index]])
            tokens[kinds[index]] += len(kept[index])
        wanted = [index for index in repeated(kept, present) if kinds[index] not in fixed]
        if not wanted:
            break
    return Samples(list(zip(kinds, kept, strict=True)), discarded, tokens)


def sampling_parameters(
    kind: str,
    decoding: KindDecoding,
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
        "top_k": min(max(decoding.top_k, 0), vocabulary),  # 0: all
        "top_p": decoding.top_p,
        "temperature": decoding.temperature,
        "max_tokens": max_tokens,
        "stop_token_ids": [eos, *other_eos],
        "seed": draw_seed(seed, row_id, kind, 0, attempt) >> 1,  # seed + j must not overflow
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
