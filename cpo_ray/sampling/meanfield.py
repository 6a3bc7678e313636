"""Meanfield negatives (MN, the paper's section 3): a share of the gold's tokens, each resampled on its own.

The distribution at position t is pi_ref(. | x, y_<t) of the gold, so one teacher-forced pass serves all negatives of a
row. EOS is no replacement: a continuation that goes on after its EOS is none. A resampled token may be the gold's own;
a negative where all of them are equals the gold and is counted as such.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cpo_ray.sampling.seeding import generator

Tokens = list[int]


@dataclass(frozen=True)
class MeanfieldDraw:
    """What one negative resamples: P ascending positions of the gold, and a uniform number for each."""

    positions: list[int]  # (P,)
    uniforms: list[float]  # (P,) in [0, 1)


def meanfield_draws(gold: Tokens, count: int, fraction: float, seed: int, row_id: str) -> list[MeanfieldDraw]:
    """Choose round(fraction * T) of the T positions before EOS, at least one, for each of `count` negatives."""
    length = len(gold) - 1
    chosen = max(1, round(fraction * length))
    draws = []
    for index in range(count):
        rng = generator(seed, row_id, "meanfield", index)
        positions = sorted(rng.choice(length, size=chosen, replace=False).tolist())
        draws.append(MeanfieldDraw(positions, rng.random(chosen).tolist()))
    return draws


def union_positions(draws: Sequence[MeanfieldDraw]) -> list[int]:
    """The positions that any of the draws needs, ascending."""
    return sorted({position for draw in draws for position in draw.positions})


def meanfield_negatives(gold: Tokens, draws: Sequence[MeanfieldDraw], logits_PV: Tensor) -> list[Tokens]:
    """Resample by inverse CDF. logits_PV: next-token logits of `union_positions(draws)`, in that order."""
    row = {position: index for index, position in enumerate(union_positions(draws))}
    cdf_PV = _cumulative(logits_PV, eos=gold[-1])
    negatives = []
    for draw in draws:
        where = torch.tensor([row[position] for position in draw.positions], device=cdf_PV.device)
        uniform_P1 = torch.tensor(draw.uniforms, dtype=torch.float64, device=cdf_PV.device)[:, None]
        tokens = torch.searchsorted(cdf_PV[where], uniform_P1, right=True).squeeze(1)
        negative = list(gold)
        for position, token in zip(draw.positions, tokens.tolist(), strict=True):
            negative[position] = token
        negatives.append(negative)
    return negatives


def _cumulative(logits_PV: Tensor, eos: int) -> Tensor:
    """(P, V) float64 distribution functions without EOS. They end in exactly 1: a number below 1 always finds a token."""
    logits_PV = logits_PV.double()
    logits_PV[:, eos] = -torch.inf
    cdf_PV = torch.softmax(logits_PV, dim=-1).cumsum(dim=-1)
    return cdf_PV / cdf_PV[:, -1:]
