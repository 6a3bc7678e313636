"""Ranks by embedding similarity to the gold (the paper's section 3): pure functions and their Ray Data actor."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import torch

from cpo_ray.cluster.resources import pool_gpus
from cpo_ray.config import RunConfig
from cpo_ray.inference.embedding import embed_texts, load_embedder
from cpo_ray.records import Group
from cpo_ray.sampling.units import read_units, write_units

DECIMALS = 5  # of a stored cosine: 100 times the noise of a float32 embedding


def round_similarity(cosine: float) -> float:
    """The cosine as it is stored and ranked: DECIMALS decimals, at most 1.

    Embeddings of one text differ by 1e-7, depending on the processor and on the other texts of the batch. Rounding makes them
    equal. The rounded value depends on one candidate alone, so the order of two candidates does not depend on a third.
    """
    return min(1.0, round(cosine, DECIMALS))


def rank_by_similarity(similarity: Sequence[float], given: Sequence[int] = (0,)) -> list[int]:
    """(K,) rounded cosines to the gold -> (K,) ranks: 0 for the gold, then descending, ties by index.

    given: ranks that the data gives the first candidates, the gold included. The others are worse than all of these.
    """
    ranks = [*given, *[0] * (len(similarity) - len(given))]
    others = range(len(given), len(similarity))
    for rank, k in enumerate(sorted(others, key=lambda k: (-similarity[k], k)), len(given)):
        ranks[k] = rank
    return ranks


class Ranker:
    """Sets `candidate_text`, `similarity` and `rank`. Embeds each distinct text of a unit once."""

    def __init__(self, config: RunConfig, reference: Path) -> None:
        """Load the embedder, and the reference's tokenizer, which decodes candidates."""
        from transformers import AutoTokenizer

        torch.set_num_threads(config.cluster.threads_per_worker)
        self.tokenizer = AutoTokenizer.from_pretrained(reference, trust_remote_code=False)
        device = config.cluster.device_of(pool_gpus(config, config.sampling.rankers))
        self.embedder = load_embedder(config.sampling.embedder, device)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Rank the candidates of the batch's units, one unit after another."""
        units = read_units(batch)
        for unit in units:
            self._rank(unit["groups"])
        return write_units(units)

    def _rank(self, groups: list[Group]) -> None:
        for group in groups:
            group["candidate_text"] = self.tokenizer.batch_decode(group["candidate_ids"], skip_special_tokens=True)
        # The texts of a unit are embedded together and nothing is cached between units: what an embedding is batched with
        # decides its last bits, and would otherwise depend on the order in which units arrive.
        distinct = list({text: None for group in groups for text in group["candidate_text"]})
        vectors = dict(zip(distinct, embed_texts(self.embedder, distinct), strict=True))
        for group in groups:
            gold, *_ = texts = group["candidate_text"]
            group["similarity"] = [round_similarity(float(vectors[text] @ vectors[gold])) for text in texts]
            group["rank"] = rank_by_similarity(group["similarity"], group["rank"] or (0,))
            if group["score"] is not None:
                group["score"] += [None] * (len(texts) - len(group["score"]))
