"""By hand, by the definitions written out, and by properties."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpo_ray.evaluation.ngrams import ORDERS, count_ngrams, distinct, ends_in_loop, repetition, self_bleu

ANSWERS = st.lists(st.lists(st.integers(0, 4), max_size=12), min_size=1, max_size=8)


def windows(tokens, n):
    return [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]


def test_repetition_by_hand():
    """Of the bigrams 12 23 31 12 23, the last two repeat earlier ones; of the trigrams 123 231 312 123, the last does."""
    answers = [[1, 2, 3, 1, 2, 3], [7, 7, 7], [7], []]
    assert repetition(count_ngrams(answers, 2)) == pytest.approx([2 / 5, 1 / 2, math.nan, math.nan], nan_ok=True)
    assert repetition(count_ngrams(answers, 3))[:2] == pytest.approx([1 / 4, 0])
    assert repetition(count_ngrams(answers, 1)) == pytest.approx([1 / 2, 2 / 3, 0, math.nan], nan_ok=True)


@given(ANSWERS, st.sampled_from(ORDERS))
def test_repetition_is_the_share_of_ngrams_that_an_earlier_place_has(answers, n):
    for tokens, share in zip(answers, repetition(count_ngrams(answers, n)), strict=True):
        grams = windows(tokens, n)
        repeated = [gram in grams[:place] for place, gram in enumerate(grams)]
        assert share == pytest.approx(sum(repeated) / len(grams)) if grams else math.isnan(share)


def test_an_ngram_never_spans_two_answers():
    counts = count_ngrams([[1, 2], [3, 4]], 2)
    assert len(set(counts.ngram_E.tolist())) == 2
    assert counts.total_A.tolist() == [1, 1]


@given(ANSWERS, st.sampled_from(ORDERS), st.data())
def test_distinct_counts_the_kept_answers_alone(answers, n, data):
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=len(answers), max_size=len(answers))))
    grams = [gram for tokens, keep in zip(answers, kept, strict=True) if keep for gram in windows(tokens, n)]
    share = distinct(count_ngrams(answers, n), kept)
    assert share == pytest.approx(len(set(grams)) / len(grams)) if grams else math.isnan(share)


def bleu(answer, references):
    """BLEU-4 as the paper of Papineni et al. defines it, with the smoothing of the module under test."""
    logs = []
    for n in ORDERS:
        ours, theirs = Counter(windows(answer, n)), Counter()
        for reference in references:
            theirs |= Counter(windows(reference, n))
        logs.append(math.log(((ours & theirs).total() or 0.1) / ours.total()))
    nearest = min((len(reference) for reference in references), key=lambda size: (abs(size - len(answer)), size))
    return math.exp(sum(logs) / 4 + min(0, 1 - nearest / len(answer)))


@given(ANSWERS)
def test_self_bleu_is_the_mean_bleu_of_each_answer_against_the_others(answers):
    lengths, kept = np.array([len(tokens) for tokens in answers]), np.ones(len(answers), dtype=bool)
    found = self_bleu([count_ngrams(answers, n) for n in ORDERS], lengths, kept)
    scored = [tokens for tokens in answers if len(tokens) >= 4]
    if len(scored) < 2:
        assert math.isnan(found)
        return
    each = [bleu(tokens, scored[:place] + scored[place + 1 :]) for place, tokens in enumerate(scored)]
    assert found == pytest.approx(sum(each) / len(each))


@given(ANSWERS, st.data())
def test_self_bleu_of_the_kept_is_that_of_a_set_without_the_others(answers, data):
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=len(answers), max_size=len(answers))))
    rest = [tokens for tokens, keep in zip(answers, kept, strict=True) if keep]
    found, alone = (
        self_bleu(
            [count_ngrams(group, n) for n in ORDERS], np.array([len(tokens) for tokens in group], dtype=int), mask
        )
        for group, mask in ((answers, kept), (rest, np.ones(len(rest), dtype=bool)))
    )
    assert found == pytest.approx(alone, nan_ok=True)


def test_equal_answers_have_a_self_bleu_of_one():
    same = [[1, 2, 3, 4, 5]] * 3
    assert self_bleu([count_ngrams(same, n) for n in ORDERS], np.array([5, 5, 5]), np.ones(3, dtype=bool)) == 1.0


@pytest.mark.parametrize(
    ("tokens", "loops"),
    [
        ([], False),
        ([5] * 11, False),  # three copies, but fewer than 12 tokens
        ([1, 2, *[5] * 12], True),
        ([9, *[1, 2, 3, 4] * 3], True),
        ([9, *[1, 2, 3, 4] * 2, 1, 2, 3], False),  # not quite three copies of the block
        ([9, *[1, 2, 3, 4] * 3, 1, 2], True),  # cut in the middle of a block: then 3 4 1 2 is the block
        ([*[1, 2, 3, 4] * 3, 9], False),  # it got out of the loop
        ([1, 2, 3, 4, 5] * 2 + [1, 2], False),
    ],
)
def test_a_loop_is_three_copies_at_the_end(tokens, loops):
    assert ends_in_loop(tokens) is loops
