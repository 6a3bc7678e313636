"""What answers are like, without a judge: repetition, diversity and length, always beside the same of the ground truth.

Tokens are those of the run's tokenizer, of the text alone, EOS not counted. The ground truth is measured as far as an answer
may go: its first `data.max_response_tokens` tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import wasserstein_distance

from cpo_ray.errors import ArtifactError
from cpo_ray.evaluation.ngrams import ORDERS, Floats, count_ngrams, distinct, ends_in_loop, repetition, self_bleu
from cpo_ray.evaluation.resampling import Estimate, Measured, bootstrap_means, jackknife, share
from cpo_ray.evaluation.text_scores import SET_METRICS, SHARES, TextScore, TextScores
from cpo_ray.records import Generation, Tokens

SHARE_COLUMNS = {(name, side) for name in SHARES for side in ("answers", "truth")}


class AnswerSet:
    """Texts with their tokens, and what is measured on each and on all of them."""

    def __init__(self, texts: Sequence[str], tokens: Sequence[Tokens]) -> None:
        """Count the n-grams; texts and tokens are of the same length."""
        self.empty_A = np.array([not text.strip() for text in texts], dtype=bool)
        self.length_A = np.array([len(ids) for ids in tokens], dtype=np.int64)
        self.counts = [count_ngrams(tokens, n) for n in ORDERS]
        self.each: dict[str, Floats] = {
            f"rep_{n}": repetition(counts) for n, counts in zip(ORDERS, self.counts, strict=True)
        }
        self.each["loops"] = np.array([ends_in_loop(ids) for ids in tokens], dtype=np.float64)
        self.each["empty"] = self.empty_A.astype(np.float64)
        self.each["tokens"] = self.length_A.astype(np.float64)

    def together(self, kept_A: npt.NDArray[np.bool_]) -> dict[str, Measured]:
        """The metrics of the kept answers as a set."""
        found = {
            f"distinct_{n}": Measured(distinct(counts, kept_A), int(np.count_nonzero(kept_A & (counts.total_A > 0))))
            for n, counts in zip(ORDERS, self.counts, strict=True)
        }
        scored = int(np.count_nonzero(kept_A & (self.counts[-1].total_A > 0)))
        return found | {"self_bleu": Measured(self_bleu(self.counts, self.length_A, kept_A), scored)}


class TextMeasurer:
    """Measures answers to one list of prompts, whose truths it measures once."""

    def __init__(
        self, rows: Sequence[Generation], encode: Callable[[Sequence[str]], list[Tokens]], max_tokens: int, seed: int
    ) -> None:
        """rows: any model's answers, for their ids and truths. encode: texts to tokens. max_tokens: of an answer, with EOS."""
        self.encode, self.max_tokens, self.seed = encode, max_tokens, seed
        self.ids = [row["id"] for row in rows]
        self.truth = self._read([row["reference"] for row in rows])

    def answers(self, rows: Sequence[Generation], name: str) -> AnswerSet:
        """Measure answers. Raises ArtifactError, naming the file `name`, if they answer other prompts."""
        if [row["id"] for row in rows] != self.ids:
            raise ArtifactError(
                f"{name} answers other prompts than the file it is compared with: run `generation` again"
            )
        return self._read([row["response"] for row in rows])

    def compare(self, answers: AnswerSet, baseline: AnswerSet | None, baseline_name: str | None) -> TextScores:
        """Every metric of the answers, with intervals, beside the truth's and against the baseline's."""
        rows = len(self.ids)
        return TextScores(
            rows=rows,
            empty=int(np.count_nonzero(answers.empty_A)),
            baseline=baseline_name if baseline is not None else None,
            metrics=self._compare_each(answers, baseline) | self._compare_sets(answers, baseline),
        )

    def rows(self, answers: AnswerSet) -> list[dict[str, Any]]:
        """Each answer's values: {"id", and the names of ANSWER_METRICS}; null where a metric is not defined."""
        columns = {
            name: [None if np.isnan(value) else float(value) for value in answers.each[name]] for name in answers.each
        }
        return [
            {"id": key, **{name: column[row] for name, column in columns.items()}} for row, key in enumerate(self.ids)
        ]

    def _read(self, texts: Sequence[str]) -> AnswerSet:
        return AnswerSet(texts, [ids[: self.max_tokens] for ids in self.encode(texts)])

    def _compare_each(self, answers: AnswerSet, baseline: AnswerSet | None) -> dict[str, TextScore]:
        names = list(answers.each)
        sides: dict[str, list[Floats | None]] = {
            "answers": [answers.each[name] for name in names],
            "truth": [self.truth.each.get(name) for name in names],
            "to_truth": [_minus(answers.each[name], self.truth.each.get(name)) for name in names],
            "to_baseline": [
                _minus(answers.each[name], None if baseline is None else baseline.each[name]) for name in names
            ],
        }
        columns = {
            (name, side): values for side, found in sides.items() for name, values in zip(names, found, strict=True)
        }
        present = {key: values for key, values in columns.items() if values is not None}
        estimates = dict(zip(present, bootstrap_means(np.column_stack(list(present.values())), self.seed), strict=True))
        estimates |= {key: share(values) for key, values in present.items() if key in SHARE_COLUMNS}
        return {name: _score({side: estimates.get((name, side)) for side in sides}) for name in names}

    def _compare_sets(self, answers: AnswerSet, baseline: AnswerSet | None) -> dict[str, TextScore]:
        def statistics(kept_A: npt.NDArray[np.bool_]) -> dict[tuple[str, str], Measured]:
            ours, truth = answers.together(kept_A), self.truth.together(kept_A)
            ours["length_distance"] = self._length_distance(answers, kept_A)
            theirs = baseline.together(kept_A) if baseline is not None else {}
            if baseline is not None:
                theirs["length_distance"] = self._length_distance(baseline, kept_A)
            found = {(name, "answers"): value for name, value in ours.items()}
            found |= {(name, "truth"): value for name, value in truth.items()}
            found |= {(name, "to_truth"): _less(ours[name], value) for name, value in truth.items()}
            return found | {(name, "to_baseline"): _less(ours[name], value) for name, value in theirs.items()}

        keys = list(statistics(np.ones(len(self.ids), dtype=bool)))
        found = dict(
            zip(keys, jackknife(lambda kept: list(statistics(kept).values()), len(self.ids), self.seed), strict=True)
        )
        sides = ("answers", "truth", "to_truth", "to_baseline")
        return {name: _score({side: found.get((name, side)) for side in sides}) for name in SET_METRICS}

    def _length_distance(self, answers: AnswerSet, kept_A: npt.NDArray[np.bool_]) -> Measured:
        lengths, truths = answers.length_A[kept_A], self.truth.length_A[kept_A]
        return Measured(float(wasserstein_distance(lengths, truths)) if len(lengths) else float("nan"), len(lengths))


def _minus(ours: Floats, theirs: Floats | None) -> Floats | None:
    return None if theirs is None else ours - theirs


def _less(ours: Measured, theirs: Measured) -> Measured:
    return Measured(ours.value - theirs.value, min(ours.n, theirs.n))


def _score(sides: Mapping[str, Estimate | None]) -> TextScore:
    answers = sides["answers"]
    if answers is None:
        raise ValueError("a metric without a value of the answers themselves")
    return TextScore(
        answers=answers, truth=sides["truth"], to_truth=sides["to_truth"], to_baseline=sides["to_baseline"]
    )
