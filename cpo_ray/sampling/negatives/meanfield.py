"""Meanfield negatives (MN, the paper's section 3): a share of the gold's tokens, each resampled on its own.

The distribution at position t is pi_ref(. | x, y_<t) of the gold, so one teacher-forced pass serves all negatives of a
row. EOS is no replacement: a continuation that goes on after its EOS is none. A resampled token may be the gold's own, and
where the reference is sure it mostly is: a negative that equals the gold or another candidate is drawn again, positions
and all, a bounded number of times, then kept and counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cpo_ray.sampling.seeding import generator

Tokens = list[int]


@dataclass(frozen=True)
class MeanfieldDraw:
    """What one try at a negative resamples: P ascending positions of the gold, and a uniform number for each."""

    positions: list[int]  # (P,)
    uniforms: list[float]  # (P,) in [0, 1)


def meanfield_draws(
    gold: Tokens, count: int, fraction: float, seed: int, row_id: str, *, tries: int
) -> list[list[MeanfieldDraw]]:
    """For each of `count` negatives its tries: round(fraction * T) of the T positions before EOS, at least one."""
    length = len(gold) - 1
    chosen = max(1, round(fraction * length))
    return [_tries(generator(seed, row_id, "meanfield", index), length, chosen, tries) for index in range(count)]


def union_positions(draws: Sequence[Sequence[MeanfieldDraw]]) -> list[int]:
    """The positions that any of the tries needs, ascending."""
    return sorted({position for tries in draws for draw in tries for position in draw.positions})


def meanfield_negatives(
    gold: Tokens, draws: Sequence[Sequence[MeanfieldDraw]], logits_PV: Tensor, present: Sequence[Tokens] = ()
) -> tuple[list[Tokens], int]:
    """One negative per list of tries, by inverse CDF, and how many draws were thrown away.

    logits_PV: next-token logits of `union_positions(draws)`, in order. present: the other candidates of the group.
    """
    row = {position: index for index, position in enumerate(union_positions(draws))}
    cdf_PV = _cumulative(logits_PV, eos=gold[-1])
    seen = {tuple(gold), *map(tuple, present)}
    negatives: list[Tokens] = []
    redraws = 0
    for tries in draws:
        for attempt, draw in enumerate(tries):
            redraws += attempt > 0
            negative = _resample(gold, draw, cdf_PV[[row[position] for position in draw.positions]])
            if tuple(negative) not in seen:
                break
        negatives.append(negative)
        seen.add(tuple(negative))
    return negatives, redraws


def _tries(rng: np.random.Generator, length: int, chosen: int, tries: int) -> list[MeanfieldDraw]:
    return [
        MeanfieldDraw(sorted(rng.choice(length, size=chosen, replace=False).tolist()), rng.random(chosen).tolist())
        for _ in range(tries)
    ]


def _resample(gold: Tokens, draw: MeanfieldDraw, cdf_PV: Tensor) -> Tokens:
    uniform_P1 = torch.tensor(draw.uniforms, dtype=torch.float64, device=cdf_PV.device)[:, None]
    tokens = torch.searchsorted(cdf_PV, uniform_P1, right=True).squeeze(1)
    negative = list(gold)
    for position, token in zip(draw.positions, tokens.tolist(), strict=True):
        negative[position] = token
    return negative


def _cumulative(logits_PV: Tensor, eos: int) -> Tensor:
    """(P, V) float64 distribution functions without EOS. They end in exactly 1: a number below 1 always finds a token."""
    logits_PV = logits_PV.double()
    logits_PV[:, eos] = -torch.inf
    cdf_PV = torch.softmax(logits_PV, dim=-1).cumsum(dim=-1)
    return cdf_PV / cdf_PV[:, -1:]
