"""What answers are like, without a judge: repetition, diversity, length and more, always beside the same of the ground truth.

Tokens are those of the run's tokenizer, of the text alone, EOS not counted. The ground truth is measured as far as an answer
may go: its first `data.max_response_tokens` tokens. Embeddings are of the whole texts, as everywhere in a run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import wasserstein_distance

from cpo_ray.errors import ArtifactError
from cpo_ray.evaluation.embedding_distance import EnergyDistance, Vectors, pair_similarity
from cpo_ray.evaluation.ngrams import (
    ORDERS,
    Floats,
    Mask,
    count_ngrams,
    distinct,
    ends_in_loop,
    repetition,
    self_bleu,
)
from cpo_ray.evaluation.resampling import Estimate, Measured, assign_groups, bootstrap_means, jackknife, share
from cpo_ray.evaluation.text_scores import SHARES, TEXT_METRICS, TextScore, TextScores
from cpo_ray.records import Generation, Tokens

SHARE_COLUMNS = {(name, side) for name in SHARES for side in ("answers", "truth")}


@dataclass(frozen=True)
class Instruments:
    """What measures a list of texts, one for each prompt. encode: their tokens. None: the run does not measure that."""

    encode: Callable[[list[str]], list[Tokens]]
    max_tokens: int  # of an answer, EOS included
    embed: Callable[[list[str]], Vectors] | None = None
    lint: Callable[[list[str]], list[float | None]] | None = None


@dataclass(frozen=True)
class AnswerSet:
    """One answer to each prompt, by one model or the truth."""

    each: Mapping[str, Floats]  # metric -> its value for each answer, (A,), NaN where it has none
    together: Mapping[str, Callable[[Mask], Measured]]  # metric -> its value for the kept answers as a set
    empty_A: Mask
    length_A: npt.NDArray[np.int64]
    vectors_AD: Vectors | None = None


def measure_answers(texts: list[str], instruments: Instruments, scored: Mapping[str, Floats]) -> AnswerSet:
    """What can be measured without the truth. scored: metrics that were computed elsewhere, their value for each answer."""
    tokens = [ids[: instruments.max_tokens] for ids in instruments.encode(texts)]
    orders = [count_ngrams(tokens, n) for n in ORDERS]
    empty_A = np.array([not text.strip() for text in texts], dtype=bool)
    length_A = np.array([len(ids) for ids in tokens], dtype=np.int64)
    each = {f"rep_{n}": repetition(counts) for n, counts in zip(ORDERS, orders, strict=True)}
    each["loops"] = np.array([ends_in_loop(ids) for ids in tokens], dtype=np.float64)
    each["empty"] = empty_A.astype(np.float64)
    each["tokens"] = length_A.astype(np.float64)
    if instruments.lint is not None:
        each["lints"] = np.array(instruments.lint(texts), dtype=np.float64)  # None becomes NaN

    def count(order: int, kept_A: Mask) -> int:
        return int(np.count_nonzero(kept_A & (orders[order].total_A > 0)))

    def distinct_of(order: int, kept_A: Mask) -> Measured:
        return Measured(distinct(orders[order], kept_A), count(order, kept_A))

    together: dict[str, Callable[[Mask], Measured]] = {
        f"distinct_{n}": partial(distinct_of, order) for order, n in enumerate(ORDERS)
    }
    together["self_bleu"] = lambda kept_A: Measured(self_bleu(orders, length_A, kept_A), count(-1, kept_A))
    vectors_AD = None if instruments.embed is None else instruments.embed(texts)
    return AnswerSet(each | dict(scored), together, empty_A, length_A, vectors_AD)


class TextMeasurer:
    """Measures answers to one list of prompts, whose truths it measures once."""

    def __init__(
        self, rows: Sequence[Generation], instruments: Instruments, seed: int, scored: Mapping[str, Floats]
    ) -> None:
        """rows: any model's answers, for their ids and truths. scored: as in `measure_answers`, of the truths."""
        self.instruments, self.seed = instruments, seed
        self.ids = [row["id"] for row in rows]
        self.group_N = assign_groups(len(rows), seed)
        self.truth = measure_answers([row["reference"] for row in rows], instruments, scored)

    def measure(self, rows: Sequence[Generation], name: str, scored: Mapping[str, Floats]) -> AnswerSet:
        """Measure answers, also against the truths. Raises ArtifactError like `check_prompts`."""
        check_prompts(rows, self.ids, name)
        answers = measure_answers([row["response"] for row in rows], self.instruments, scored)
        each, together = dict(answers.each), dict(answers.together)
        together["length_distance"] = lambda kept_N: self._length_distance(answers, kept_N)
        if answers.vectors_AD is not None and self.truth.vectors_AD is not None:
            each["similarity"] = pair_similarity(answers.vectors_AD, self.truth.vectors_AD, answers.empty_A)
            energy = EnergyDistance(answers.vectors_AD, self.truth.vectors_AD, self.group_N)
            together["energy_distance"] = lambda kept_N: Measured(energy.of(kept_N), int(np.count_nonzero(kept_N)))
        return AnswerSet(each, together, answers.empty_A, answers.length_A)

    def compare(self, answers: AnswerSet, baseline: AnswerSet | None, baseline_name: str | None) -> TextScores:
        """Every metric of the answers, with intervals, beside the truth's and against the baseline's."""
        scores = self._compare_each(answers, baseline) | self._compare_sets(answers, baseline)
        return TextScores(
            rows=len(self.ids),
            empty=int(np.count_nonzero(answers.empty_A)),
            baseline=baseline_name if baseline is not None else None,
            metrics={name: scores[name] for name in TEXT_METRICS if name in scores},
        )

    def rows(self, answers: AnswerSet) -> list[dict[str, Any]]:
        """Each answer's values: {"id", and the names of its metrics}; null where a metric is not defined."""
        columns = {
            name: [None if np.isnan(value) else float(value) for value in answers.each[name]]
            for name in TEXT_METRICS
            if name in answers.each
        }
        return [
            {"id": key, **{name: column[row] for name, column in columns.items()}} for row, key in enumerate(self.ids)
        ]

    def _compare_each(self, answers: AnswerSet, baseline: AnswerSet | None) -> dict[str, TextScore]:
        columns: dict[tuple[str, str], Floats] = {}
        for name, values in answers.each.items():
            columns[name, "answers"] = values
            if name in self.truth.each:
                columns[name, "truth"] = self.truth.each[name]
                columns[name, "to_truth"] = values - self.truth.each[name]
            if baseline is not None:
                columns[name, "to_baseline"] = values - baseline.each[name]
        estimates = dict(zip(columns, bootstrap_means(np.column_stack(list(columns.values())), self.seed), strict=True))
        estimates |= {key: share(values) for key, values in columns.items() if key in SHARE_COLUMNS}
        return _scores(estimates)

    def _compare_sets(self, answers: AnswerSet, baseline: AnswerSet | None) -> dict[str, TextScore]:
        def statistics(kept_N: Mask) -> dict[tuple[str, str], Measured]:
            found: dict[tuple[str, str], Measured] = {}
            for name, value_of in answers.together.items():
                found[name, "answers"] = ours = value_of(kept_N)
                if name in self.truth.together:
                    found[name, "truth"] = truth = self.truth.together[name](kept_N)
                    found[name, "to_truth"] = _less(ours, truth)
                if baseline is not None:
                    found[name, "to_baseline"] = _less(ours, baseline.together[name](kept_N))
            return found

        keys = list(statistics(np.ones(len(self.ids), dtype=bool)))
        return _scores(
            dict(zip(keys, jackknife(lambda kept_N: list(statistics(kept_N).values()), self.group_N), strict=True))
        )

    def _length_distance(self, answers: AnswerSet, kept_N: Mask) -> Measured:
        lengths, truths = answers.length_A[kept_N], self.truth.length_A[kept_N]
        return Measured(float(wasserstein_distance(lengths, truths)) if len(lengths) else float("nan"), len(lengths))


def check_prompts(rows: Sequence[Generation], ids: Sequence[str], name: str) -> None:
    """Raise ArtifactError, naming the file, if the rows are not answers to the prompts `ids` in this order."""
    if [row["id"] for row in rows] != list(ids):
        raise ArtifactError(f"{name} has other prompts than what it is compared with: run the stage `generation` again")


def _less(ours: Measured, theirs: Measured) -> Measured:
    return Measured(ours.value - theirs.value, min(ours.n, theirs.n))


def _scores(estimates: Mapping[tuple[str, str], Estimate]) -> dict[str, TextScore]:
    """By metric, from estimates by (metric, side)."""
    return {
        name: TextScore(
            answers=estimates[name, "answers"],
            truth=estimates.get((name, "truth")),
            to_truth=estimates.get((name, "to_truth")),
            to_baseline=estimates.get((name, "to_baseline")),
        )
        for name, side in estimates
        if side == "answers"
    }
