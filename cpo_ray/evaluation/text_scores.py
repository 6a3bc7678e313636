"""The text metrics: their names and definitions, and the form of their scores."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

from cpo_ray.evaluation.ngrams import LOOP_COPIES, LOOP_TOKENS, ORDERS
from cpo_ray.evaluation.resampling import Estimate


@dataclass(frozen=True)
class TextMetric:
    """A metric's name for people, its definition, the format of its values, and whether short tables have it."""

    label: str
    about: str
    form: str = ".3f"
    short: bool = False


ANSWER_METRICS: Mapping[str, TextMetric] = {
    **{
        f"rep_{n}": TextMetric(
            f"rep-{n}",
            f"share of an answer's {n}-grams of tokens that repeat an earlier one of the same answer, mean over answers",
            short=n == max(ORDERS),
        )
        for n in ORDERS
    },
    "loops": TextMetric(
        "loops",
        f"share of answers that end in a loop: {LOOP_COPIES} or more copies of a block, {LOOP_TOKENS} tokens or more",
        short=True,
    ),
    "empty": TextMetric("empty", "share of answers without text"),
    "similarity": TextMetric("similarity", "mean cosine of an answer's embedding with its truth's", short=True),
    "reference_logp": TextMetric("log-prob, reference", "mean log-prob per token under the run's reference, nats"),
    "heldout_logp": TextMetric("log-prob, held-out", "mean log-prob per token under a model outside of the run, nats"),
    "lints": TextMetric("lints", "grammar and spelling lints per 100 words, mean over answers", ".2f"),
    "tokens": TextMetric("tokens", "mean length of an answer, EOS not counted", ".1f", short=True),
}
"""Measured on each answer, and averaged. Which of them there are depends on the configuration."""
SHARES = ("loops", "empty")  # of them, those that an answer has or has not
SET_METRICS: Mapping[str, TextMetric] = {
    "length_distance": TextMetric(
        "length distance",
        "Wasserstein-1 distance between the lengths of the answers and of the truths, in tokens",
        ".1f",
    ),
    **{
        f"distinct_{n}": TextMetric(
            f"distinct-{n}", f"share of different {n}-grams among those of all answers together", short=n == 2
        )
        for n in ORDERS
    },
    "energy_distance": TextMetric(
        "energy distance",
        "between the embeddings of the answers and of the truths; 0 if both are distributed alike",
        ".4f",
    ),
    "self_bleu": TextMetric("Self-BLEU", "mean BLEU-4 of each answer with all others as references", short=True),
}
"""Measured on all answers together."""
TEXT_METRICS: Mapping[str, TextMetric] = {**ANSWER_METRICS, **SET_METRICS}


class TextScore(TypedDict):
    """One metric of one model under one decoding, and of the ground truth; differences are paired, prompt by prompt."""

    answers: Estimate
    truth: Estimate | None  # None for a metric that compares with the truth
    to_truth: Estimate | None  # answers minus truth
    to_baseline: Estimate | None  # answers minus the baseline's; None without a baseline, and for the baseline itself


class TextScores(TypedDict):
    """Everything that was measured of one model under one decoding."""

    rows: int
    empty: int  # answers without text
    baseline: str | None  # the model that `to_baseline` compares with
    metrics: dict[str, TextScore]  # by the names of TEXT_METRICS
