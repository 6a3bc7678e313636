"""What is scored, by a stub; and the scores of a real model against its own forward pass."""

import math

import numpy as np
import pytest
import torch

from cpo_ray.errors import CpoRayError
from cpo_ray.evaluation import likelihood
from cpo_ray.evaluation.answer_likelihood import PromptedAnswers, end_answers, score_answers
from cpo_ray.evaluation.likelihood import Continuations, load_likelihood
from tests.serving.tiny_llama import write_tiny_llama

PROMPTS = [[1, 2], [3], [4, 5, 6]]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny", seed=1)


def test_every_different_answer_is_scored_once_and_divided_by_its_tokens():
    asked = []

    def score(rows):
        asked.extend(rows)
        return [[-float(sum(tokens)) for tokens in row.continuations] for row in rows]

    prompted = PromptedAnswers(PROMPTS, [[[7, 8], [9], []], [[7, 8], [], []], [[8, 8, 8], [9], []]])
    found = score_answers(prompted, score)
    assert asked == [Continuations([1, 2], [[7, 8], [8, 8, 8]]), Continuations([3], [[9]])]
    expected = [[-7.5, -9, math.nan], [-7.5, math.nan, math.nan], [-8, -9, math.nan]]
    assert np.array(found) == pytest.approx(np.array(expected), nan_ok=True)


def test_answers_end_with_eos_where_the_text_ended():
    assert end_answers([[1], [2]], [True, False], 0) == [[1, 0], [2]]
    assert end_answers([[1], [2]], [True, False], None) == [[1], [2]]


def test_a_short_context_cuts_the_beginning_of_prompts():
    prompted = PromptedAnswers([[1, 2, 3, 4], [1]], [[[5], [6]], [[7, 8], [9] * 9]])
    assert prompted.within(None, []) is prompted
    cut = prompted.within(4, [])
    assert cut.prompts == [[3, 4], [1]]
    assert cut.answers == [[[5], [6]], [[7, 8], [9] * 3]]


@pytest.mark.parametrize("batch_tokens", [1, 30, 8192])
def test_log_probs_are_those_of_the_model_s_own_forward_pass(model, batch_tokens, monkeypatch):
    monkeypatch.setattr(likelihood, "BATCH_TOKENS", batch_tokens)
    rows = [
        Continuations([5, 6, 7], [[20, 21], [20, 22, 23], [40]]),
        Continuations([900], [[1, 0]]),
        Continuations([8, 9], [[3] * 20, [3]]),
    ]
    scorer = load_likelihood(model, "fp32", "cpu")
    found = scorer.score(rows)
    for row, logps in zip(rows, found, strict=True):
        for tokens, logp in zip(row.continuations, logps, strict=True):
            with torch.no_grad():
                every = scorer.model(torch.tensor([row.prompt + tokens])).logits[0].log_softmax(-1)
            own = sum(every[len(row.prompt) - 1 + place, token].item() for place, token in enumerate(tokens))
            assert logp == pytest.approx(own, abs=1e-3)
    assert scorer.score([]) == []


def test_a_log_prob_that_is_not_finite_is_an_error(model):
    scorer = load_likelihood(model, "fp32", "cpu")
    with torch.no_grad():
        scorer.model.get_output_embeddings().weight[3] = float("nan")
    with pytest.raises(CpoRayError, match="the log-prob of an answer is not finite"):
        scorer.score([Continuations([1], [[3]])])
