"""Parallel scheduled sampling (PSS), the paper's baseline: learn to continue after one's own mistakes.

Each gold is copied a few times. Some tokens of each copy are replaced by samples of the model, all positions at once from
one teacher-forced pass. Every copy is trained to predict the gold (Duckworth et al. 2019).
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from cpo_ray.objective.packing import PackedGroups, pack_groups
from cpo_ray.records import Tokens

SampleTokens = Callable[[PackedGroups, Tensor], Tensor]  # (packed, uniform_ES) -> sampled_ES


def uniform_draws(seed: int, step: int, row: int, sequences: int, length: int) -> np.ndarray:
    """(2, sequences, length) in [0, 1): which tokens are replaced, and by what. Depends on seed, step and row alone."""
    return np.random.default_rng([seed, step, row]).random((2, sequences, length))


def sample_copies(
    sample: SampleTokens,
    prompts: Sequence[Tokens],
    golds: Sequence[Tokens],
    draws: Sequence[np.ndarray],
    probability: float,
) -> list[list[Tokens]]:
    """For each gold, copies with about `probability` of the tokens sampled: (B, sequences) token lists as long as the gold.

    sample(packed, uniforms): the model's samples at the golds' edges. draws: from `uniform_draws`. The last token
    of a copy is never an input, so it stays.
    """
    packed = pack_groups(prompts, [[gold] for gold in golds])
    uniforms = torch.from_numpy(np.concatenate([draw[1] for draw in draws], axis=1).T.copy())  # (M, sequences)
    uniform_ES = torch.empty_like(uniforms)
    uniform_ES[packed.member_edge_M] = uniforms
    sampled_MS = sample(packed, uniform_ES)[packed.member_edge_M].tolist()
    copies, start = [], 0
    for gold, draw in zip(golds, draws, strict=True):
        span = sampled_MS[start : start + len(gold)]
        replace = draw[0] < probability
        copies.append(
            [
                [*(span[t][s] if replace[s][t] else gold[t] for t in range(len(gold) - 1)), gold[-1]]
                for s in range(len(replace))
            ]
        )
        start += len(gold)
    return copies


def pack_copies(prompts: Sequence[Tokens], golds: Sequence[Tokens], copies: Sequence[Sequence[Tokens]]) -> PackedGroups:
    """The copies as candidates whose targets are the gold's tokens."""
    return pack_groups(
        prompts, copies, targets=[[gold] * len(group) for gold, group in zip(golds, copies, strict=True)]
    )
