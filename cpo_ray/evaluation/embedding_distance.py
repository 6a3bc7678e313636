"""Answers and truths as embeddings: how similar each pair is, and how far apart the two sets are."""

import numpy as np
import numpy.typing as npt

from cpo_ray.evaluation.ngrams import Floats

Vectors = npt.NDArray[np.float32]

CHUNK_ROWS = 512  # rows whose distances to all others are in memory


def pair_similarity(answers_ND: Vectors, truths_ND: Vectors, empty_N: npt.NDArray[np.bool_]) -> Floats:
    """The cosine of each answer with its truth, (N,); 0 for an empty answer, whose embedding means nothing."""
    norms = np.linalg.norm(answers_ND, axis=1) * np.linalg.norm(truths_ND, axis=1)
    products = np.einsum("nd,nd->n", answers_ND.astype(np.float64), truths_ND.astype(np.float64))
    cosines = np.divide(products, norms, out=np.zeros(len(norms)), where=norms > 0)
    return np.where(empty_N, 0.0, cosines)


class EnergyDistance:
    """Szekely and Rizzo's energy distance between answers and truths, for the whole set and without groups of prompts.

    2 E|X - Y'| - E|X - X'| - E|Y - Y'| with the Euclidean norm, every expectation over two different prompts. So it is unbiased
    whatever the number of prompts: 0 on average if the two distributions are equal, and then sometimes below 0.
    """

    def __init__(self, answers_ND: Vectors, truths_ND: Vectors, group_N: npt.NDArray[np.int64]) -> None:
        """group_N: each prompt's group, from 0: sums of distances are kept for each pair of groups."""
        self.group_N = group_N
        self.sums_GG = (
            2 * _sums(answers_ND, truths_ND, group_N)
            - _sums(answers_ND, answers_ND, group_N)
            - _sums(truths_ND, truths_ND, group_N)
        )

    def of(self, kept_N: npt.NDArray[np.bool_]) -> float:
        """The distance between the answers and the truths of the kept prompts: whole groups. NaN for fewer than two."""
        count = int(np.count_nonzero(kept_N))
        kept_G = np.unique(self.group_N[kept_N])
        if count < 2:
            return float("nan")
        return float(self.sums_GG[np.ix_(kept_G, kept_G)].sum() / (count * (count - 1)))


def _sums(left_ND: Vectors, right_ND: Vectors, group_N: npt.NDArray[np.int64]) -> Floats:
    """Distances between rows of different prompts, summed by the groups of both: (G, G)."""
    left, right = left_ND.astype(np.float64), right_ND.astype(np.float64)
    squares = np.einsum("nd,nd->n", right, right)
    groups = int(group_N.max(initial=-1)) + 1
    member_NG = np.zeros((len(group_N), groups))
    member_NG[np.arange(len(group_N)), group_N] = 1
    sums_GG = np.zeros((groups, groups))
    for start in range(0, len(left), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        part = left[rows]
        squared = np.einsum("nd,nd->n", part, part)[:, None] + squares - 2 * (part @ right.T)
        distances = np.sqrt(np.maximum(squared, 0.0))
        distances[np.arange(len(part)), np.arange(start, start + len(part))] = 0.0  # the same prompt
        sums_GG += member_NG[rows].T @ (distances @ member_NG)
    return sums_GG
