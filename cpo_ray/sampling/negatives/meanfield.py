"""Meanfield negatives (MN, the paper's section 3): a share of the gold's tokens is resampled, each independently.

The distribution at position t is pi_ref(. | x, y_<t) with the gold's y_<t, so one teacher-forced pass serves all negatives of
a row. EOS is excluded as a replacement: a continuation must not go on after EOS. A resampled token may equal the gold's, and
mostly does if the reference is confident: a negative that equals the gold or another candidate is drawn again with new
positions, a bounded number of times, then kept and counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cpo_ray.records import Tokens, without_eos
from cpo_ray.sampling.seeding import generator


@dataclass(frozen=True)
class MeanfieldDraw:
    """What one attempt at a negative resamples: P ascending positions of the gold, and a uniform number for each."""

    positions: list[int]  # (P,)
    uniforms: list[float]  # (P,) in [0, 1)


def meanfield_draws(
    gold: Tokens, count: int, fraction: float, seed: int, row_id: str, eos: int, *, attempts: int
) -> list[list[MeanfieldDraw]]:
    """The attempts at each of `count` negatives: round(fraction * T) of the T positions before EOS, at least one.

    A gold that was cut has no EOS: all its positions may be resampled.
    """
    length = len(without_eos(gold, eos))
    chosen = max(1, round(fraction * length))
    return [_attempts(generator(seed, row_id, "meanfield", index), length, chosen, attempts) for index in range(count)]


def union_positions(draws: Sequence[Sequence[MeanfieldDraw]]) -> list[int]:
    """The positions that any attempt needs, ascending."""
    return sorted({position for attempts in draws for draw in attempts for position in draw.positions})


def meanfield_negatives(
    gold: Tokens, draws: Sequence[Sequence[MeanfieldDraw]], logits_PV: Tensor, eos: int, present: Sequence[Tokens] = ()
) -> tuple[list[Tokens], int]:
    """One negative per list of attempts, by inverse CDF, and the number of draws thrown away.

    logits_PV: next-token logits at `union_positions(draws)`, in order. present: the other candidates of the group.
    """
    row = {position: index for index, position in enumerate(union_positions(draws))}
    cdf_PV = _cumulative(logits_PV, eos)
    seen = {tuple(gold), *map(tuple, present)}
    negatives: list[Tokens] = []
    redraws = 0
    for attempts in draws:
        for attempt, draw in enumerate(attempts):
            redraws += attempt > 0
            negative = _resample(gold, draw, cdf_PV[[row[position] for position in draw.positions]])
            if tuple(negative) not in seen:
                break
        negatives.append(negative)
        seen.add(tuple(negative))
    return negatives, redraws


def _attempts(rng: np.random.Generator, length: int, chosen: int, count: int) -> list[MeanfieldDraw]:
    return [
        MeanfieldDraw(sorted(rng.choice(length, size=chosen, replace=False).tolist()), rng.random(chosen).tolist())
        for _ in range(count)
    ]


def _resample(gold: Tokens, draw: MeanfieldDraw, cdf_PV: Tensor) -> Tokens:
    uniform_P1 = torch.tensor(draw.uniforms, dtype=torch.float64, device=cdf_PV.device)[:, None]
    tokens = torch.searchsorted(cdf_PV, uniform_P1, right=True).squeeze(1)
    negative = list(gold)
    for position, token in zip(draw.positions, tokens.tolist(), strict=True):
        negative[position] = token
    return negative


def _cumulative(logits_PV: Tensor, eos: int) -> Tensor:
    """(P, V) float64 cumulative distributions without EOS. The last value is exactly 1, so u < 1 always finds a token."""
    logits_PV = logits_PV.double()
    logits_PV[:, eos] = -torch.inf
    cdf_PV = torch.softmax(logits_PV, dim=-1).cumsum(dim=-1)
    return cdf_PV / cdf_PV[:, -1:]
