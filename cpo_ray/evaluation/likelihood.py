"""Log-probs of answers under a language model: the run's reference, or one that took no part in the run."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from cpo_ray.errors import CpoRayError
from cpo_ray.objective import pretrained
from cpo_ray.objective.attention import use_tree_attention
from cpo_ray.objective.check import NotComputable, choose_groups, settle_layout
from cpo_ray.objective.logprobs import candidate_logps
from cpo_ray.objective.packing import pack_groups
from cpo_ray.records import Tokens

BATCH_TOKENS = 8192  # tokens per forward pass, before shared prefixes are merged


class Continuations(NamedTuple):
    """A prompt and everything that is to be scored after it: the different answers to it, and its truth. None is empty."""

    prompt: Tokens
    continuations: list[Tokens]

    @property
    def cost(self) -> int:
        """Tokens."""
        return len(self.prompt) + sum(map(len, self.continuations))


class Likelihood:
    """A model that scores continuations."""

    def __init__(self, model: PreTrainedModel) -> None:
        """model: as `load_likelihood` returns it."""
        self.model, self.layout_chosen = model, False

    @torch.inference_mode()
    def score(self, rows: Sequence[Continuations]) -> list[list[float]]:
        """Per row, the log-prob of each continuation, nats, summed over its tokens.

        Raises CpoRayError if one is not finite, or if the model cannot be computed.
        """
        if rows and not self.layout_chosen:
            self._choose_layout(rows)
        scores: list[list[float]] = [[] for _ in rows]
        for batch in _batches([row.cost for row in rows]):
            width = max(len(rows[index].continuations) for index in batch)
            padded = [_pad(rows[index].continuations, width) for index in batch]
            packed = pack_groups([rows[index].prompt for index in batch], padded).to(self.model.device)
            for index, logps in zip(batch, candidate_logps(self.model, packed).tolist(), strict=True):
                scores[index] = logps[: len(rows[index].continuations)]
        if not all(math.isfinite(logp) for logps in scores for logp in logps):
            raise CpoRayError(f"{type(self.model).__name__}: the log-prob of an answer is not finite")
        return scores

    def _choose_layout(self, rows: Sequence[Continuations]) -> None:
        try:
            settle_layout(self.model, *choose_groups([row.prompt for row in rows], [row.continuations for row in rows]))
        except NotComputable as error:
            raise CpoRayError(str(error)) from None
        self.layout_chosen = True


def load_likelihood(source: str | Path, precision: str, device: str) -> Likelihood:
    """Load a Hugging Face directory or hub id. Raises TrainingError if it cannot be loaded."""
    model = pretrained.load_model(source, precision).to(device)
    use_tree_attention(model)
    return Likelihood(model)


def _pad(continuations: list[Tokens], width: int) -> list[Tokens]:
    """Exactly `width` continuations. A repeated one is the same leaf of the token tree, and costs nothing."""
    return continuations + continuations[:1] * (width - len(continuations))


def _batches(costs: Sequence[int]) -> list[list[int]]:
    """Indices of similar cost in batches of at most BATCH_TOKENS tokens, or of one row."""
    batches: list[list[int]] = []
    total = 0
    for index in sorted(range(len(costs)), key=costs.__getitem__):
        if not batches or total + costs[index] > BATCH_TOKENS:
            batches.append([])
            total = 0
        batches[-1].append(index)
        total += costs[index]
    return batches
