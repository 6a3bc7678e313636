"""Log-probs per token of answers: what is scored after which prompt, each different answer once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cpo_ray.evaluation.likelihood import Continuations
from cpo_ray.evaluation.ngrams import Floats
from cpo_ray.records import Tokens, cut_prompt

Score = Callable[[Sequence[Continuations]], list[list[float]]]  # log-probs of each continuation, summed over its tokens


@dataclass(frozen=True)
class PromptedAnswers:
    """Answers to prompts, as one language model reads both."""

    prompts: Sequence[Tokens]  # (N,)
    answers: Sequence[Sequence[Tokens]]  # lists of (N,) answers: of the truth, and of each model and decoding

    def within(self, context: int | None, special: Sequence[int]) -> "PromptedAnswers":
        """The same with prompts that leave room for their longest answer; they lose their beginning, and answers their end."""
        if context is None:
            return self
        lists = [[tokens[: context - 1] for tokens in answers] for answers in self.answers]
        longest = [max(len(answers[row]) for answers in lists) for row in range(len(self.prompts))]
        prompts = [
            cut_prompt(prompt, context - room, special) for prompt, room in zip(self.prompts, longest, strict=True)
        ]
        return PromptedAnswers(prompts, lists)


def score_answers(prompted: PromptedAnswers, score: Score) -> list[Floats]:
    """Nats per token of every answer, a list (N,) for each list of answers; NaN for an answer without tokens.

    Equal answers to a prompt are scored once, and all answers to a prompt in one pass.
    """
    different = [
        list(dict.fromkeys(tuple(answers[row]) for answers in prompted.answers if answers[row]))
        for row in range(len(prompted.prompts))
    ]
    scored = [row for row, answers in enumerate(different) if answers]
    sums = score([Continuations(prompted.prompts[row], [list(answer) for answer in different[row]]) for row in scored])
    logps = {
        (row, answer): total / len(answer)
        for row, totals in zip(scored, sums, strict=True)
        for answer, total in zip(different[row], totals, strict=True)
    }
    return [
        np.array([logps.get((row, tuple(tokens)), np.nan) for row, tokens in enumerate(answers)], dtype=np.float64)
        for answers in prompted.answers
    ]


def end_answers(tokens: Sequence[Tokens], ended: Sequence[bool], eos: int | None) -> list[Tokens]:
    """Answers with EOS where the text ended, in a vocabulary that has one."""
    return [[*ids, eos] if ends and eos is not None else ids for ids, ends in zip(tokens, ended, strict=True)]
