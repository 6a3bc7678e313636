import pytest
import torch

from cpo_ray.config import ObjectiveConfig
from cpo_ray.training.group_loss import Candidates
from cpo_ray.training.step_metrics import StepSums, step_metrics

OBJECTIVE = ObjectiveConfig(ranked=False, beta=2.0)


def add_groups(sums, drifts, valid):
    """A microbatch of groups with a gold and two negatives, whose log-probs are `drifts` above the reference's."""
    ref = torch.full((len(drifts), 3), -5.0)
    ranks, kinds = torch.arange(3).expand(len(drifts), 3), [["gold", "batch", "autoregressive"]] * len(drifts)
    rows = list(range(len(drifts)))
    policy = ref + torch.tensor(drifts)
    candidates = Candidates(ref, ranks, torch.tensor(valid), torch.ones(len(drifts), 3), None)
    sums.add_cpo(torch.zeros(len(drifts)), policy, candidates, kinds, rows, OBJECTIVE)


def metrics_of(*microbatches, sampled_from_step=0):
    """One worker's metrics, without the all-reduce."""
    sums = StepSums(torch.device("cpu"), ["gold", "batch", "autoregressive"])
    for drifts, valid in microbatches:
        add_groups(sums, drifts, valid)
    return step_metrics(dict(zip(sums.index, sums.sums.tolist(), strict=True)), OBJECTIVE, sampled_from_step)


FIRST, SECOND, ALONE = [1.0, 0.0, 0.5], [2.0, -1.0, 0.0], [9.0, 9.0, 9.0]
BOTH, ONE, NONE = [True, True, True], [True, True, False], [True, False, False]


def test_the_margin_is_a_mean_over_prompts_that_have_a_negative():
    """Beta is 2: 2 * (1 - 0), 2 * (2 + 0.5), and a prompt whose negatives all equal the gold."""
    together = metrics_of(([FIRST, SECOND, ALONE], [ONE, BOTH, NONE]))
    assert together["margin"] == pytest.approx((2 + 5) / 2)
    assert together["masked"] == 3
    apart = metrics_of(([FIRST], [ONE]), ([ALONE], [NONE]), ([SECOND], [BOTH]))
    assert apart["margin"] == together["margin"]


def test_without_any_negative_there_is_no_margin():
    alone = metrics_of(([ALONE], [NONE]))
    assert "margin" not in alone
    assert (alone["accuracy"], alone["rank_accuracy"]) == (1.0, 1.0)


def test_kl_is_estimated_on_samples_of_the_reference_alone():
    groups = ([FIRST, SECOND], [BOTH, BOTH])
    assert metrics_of(groups)["kl"] == pytest.approx(-0.25)
    assert "kl" not in metrics_of(groups, sampled_from_step=10)


def test_an_answer_as_good_as_the_gold_is_none_of_its_negatives():
    """Drifts 1, 3, 0 with a tie of the first two: the gold is above the one worse answer, and the margin is 2 * (1 - 0)."""
    sums = StepSums(torch.device("cpu"), ["gold", "answer"])
    ref, ranks = torch.zeros(1, 4), torch.tensor([[0, 0, 2, 3]])
    policy, valid = torch.tensor([[1.0, 3.0, 0.0, 1.0]]), torch.tensor([[True, True, True, False]])
    kinds = [["gold", "answer", "answer", "gold"]]  # the last fills the group
    candidates = Candidates(ref, ranks, valid, torch.ones(1, 4), None, ties=True)
    sums.add_cpo(torch.zeros(1), policy, candidates, kinds, [0], OBJECTIVE)
    metrics = step_metrics(dict(zip(sums.index, sums.sums.tolist(), strict=True)), OBJECTIVE)
    assert (metrics["accuracy"], metrics["margin"], metrics["masked"]) == (1.0, 2.0, 0)
    assert metrics["rank_accuracy"] == 1.0
    assert metrics["negative_drift"] == {"answer": 1.5}
