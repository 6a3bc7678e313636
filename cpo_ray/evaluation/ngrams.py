"""Repetition and diversity of answers by their n-grams of tokens. An answer of fewer than n tokens has no n-grams."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cpo_ray.records import Tokens

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

ORDERS = (1, 2, 3, 4)
SMOOTHED = (
    0.1  # matches that count for an order without any: `method1` of Chen and Cherry (2014), as Self-BLEU's authors use
)
LOOP_COPIES = 3  # consecutive copies of a block that make a loop ...
LOOP_TOKENS = 12  # ... if they are at least this many tokens together


@dataclass(frozen=True)
class NgramCounts:
    """How often each answer has each n-gram, for one n.

    An entry is an answer and an n-gram that occurs in it; the entries of an n-gram are consecutive, the largest count first.
    """

    answer_E: Integers  # index of the answer
    ngram_E: Integers  # number of the n-gram, 0 ... distinct - 1
    count_E: Integers  # occurrences in this answer
    total_A: Integers  # n-grams of each answer, every occurrence counted

    def different(self) -> Integers:
        """Different n-grams of each answer, (A,)."""
        return np.bincount(self.answer_E, minlength=len(self.total_A))


def count_ngrams(answers: Sequence[Tokens], n: int) -> NgramCounts:
    """Count the n-grams of every answer."""
    lengths = np.array([len(tokens) for tokens in answers], dtype=np.int64)
    total_A = np.maximum(lengths - n + 1, 0)
    if not total_A.any():
        none = np.zeros(0, dtype=np.int64)
        return NgramCounts(none, none, none, total_A)
    token_P = np.concatenate([np.asarray(tokens, dtype=np.int64) for tokens in answers])
    answer_P = np.repeat(np.arange(len(answers)), lengths)
    within = answer_P[: len(answer_P) - n + 1] == answer_P[n - 1 :]  # the n-gram that begins here is of one answer
    windows: Any = np.lib.stride_tricks.sliding_window_view(token_P, n)[within]
    ngrams, ngram_P = np.unique(windows, axis=0, return_inverse=True)
    pairs, counts = np.unique(answer_P[: len(within)][within] * len(ngrams) + ngram_P.ravel(), return_counts=True)
    answer_E, ngram_E = np.divmod(pairs, len(ngrams))
    order = np.lexsort((-counts, ngram_E))
    return NgramCounts(answer_E[order], ngram_E[order], counts[order], total_A)


def repetition(counts: NgramCounts) -> Floats:
    """rep-n of each answer, (A,): the share of its n-grams that repeat an earlier n-gram of the same answer.

    That is 1 - distinct / all n-grams, the seq-rep-n of Welleck et al. (2020). NaN for an answer without n-grams.
    """
    return 1 - _ratio(counts.different(), counts.total_A)


def distinct(counts: NgramCounts, kept_A: Mask) -> float:
    """distinct-n of the kept answers together (Li et al. 2016): different n-grams / all n-grams. NaN if they have none.

    It falls with the amount of text: compare it on the same prompts, and read it beside the length.
    """
    ngrams = counts.ngram_E[kept_A[counts.answer_E]]
    return float(_ratio(np.count_nonzero(np.bincount(ngrams)), counts.total_A[kept_A].sum()))


def self_bleu(orders: Sequence[NgramCounts], lengths_A: Integers, kept_A: Mask) -> float:
    """Self-BLEU of the kept answers (Zhu et al. 2018): the mean BLEU of each against all others as references.

    orders: the counts for n = 1, 2, ... (BLEU-4: four of them). BLEU clips an n-gram's count in an answer to its largest count
    in one of the others, which is the largest count of all, or the second largest for the answer that has the largest. So the
    cost is linear in the tokens, not quadratic in the answers. An answer without n-grams of the highest order is left out;
    NaN if fewer than two are left. 1: all answers are the same text.
    """
    scored_A = kept_A & (orders[-1].total_A > 0)
    if np.count_nonzero(scored_A) < 2:
        return float("nan")
    logs_A = np.mean([_log_precision(counts, scored_A) for counts in orders], axis=0)
    scores_A = np.exp(logs_A[scored_A]) * _brevity(lengths_A[scored_A])
    return float(scores_A.mean())


def ends_in_loop(tokens: Tokens) -> bool:
    """Whether the answer ends in a loop: its last tokens are 3 or more copies of one block, at least 12 tokens together."""
    for size in range(1, len(tokens) // LOOP_COPIES + 1):
        looped = max(LOOP_COPIES * size, LOOP_TOKENS)
        tail = tokens[len(tokens) - looped :] if looped <= len(tokens) else []
        if tail and tail[size:] == tail[:-size]:
            return True
    return False


def _log_precision(counts: NgramCounts, scored_A: Mask) -> Floats:
    """The log of BLEU's modified precision for one n, (A,); 0 for answers that are not scored."""
    kept_E = scored_A[counts.answer_E]
    answer_E, ngram_E, count_E = counts.answer_E[kept_E], counts.ngram_E[kept_E], counts.count_E[kept_E]
    first_E = np.concatenate([[True], ngram_E[1:] != ngram_E[:-1]])  # the entry with the n-gram's largest count
    start_E = np.flatnonzero(first_E)[np.cumsum(first_E) - 1]
    following_E = np.concatenate([np.where(first_E[1:], 0, count_E[1:]), [0]])
    others_E = np.where(first_E, following_E, count_E[start_E])
    matches_A = np.bincount(answer_E, np.minimum(count_E, others_E), minlength=len(scored_A))
    matches_A = np.where(matches_A == 0, SMOOTHED, matches_A)
    return np.log(matches_A / np.maximum(counts.total_A, 1), where=scored_A, out=np.zeros(len(scored_A)))


def _brevity(lengths: Integers) -> Floats:
    """BLEU's brevity penalty of each answer, against the nearest length among the others (of two, the shorter)."""
    order = np.argsort(lengths, kind="stable")
    ranked = lengths[order].astype(np.float64)
    shorter = np.concatenate([[-np.inf], ranked[:-1]])
    longer = np.concatenate([ranked[1:], [np.inf]])
    nearest = np.where(ranked - shorter <= longer - ranked, shorter, longer)
    penalty = np.empty(len(ranked))
    penalty[order] = np.exp(np.minimum(0.0, 1 - nearest / ranked))
    return penalty


def _ratio(part: npt.ArrayLike, whole: npt.ArrayLike) -> Floats:
    """part / whole, and NaN where the whole is 0."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
