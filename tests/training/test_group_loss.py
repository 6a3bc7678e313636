"""Every configured loss, from log-probs through a microbatch to the check of the first step."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from cpo_ray.config import ObjectiveConfig
from cpo_ray.training.group_loss import Candidates, group_loss, implicit_rewards, initial_loss, initial_loss_tolerance
from cpo_ray.training.loader import Batch
from cpo_ray.training.microbatch import microbatch_loss
from cpo_ray.training.rewards import read_rewards
from cpo_ray.training.rows import TrainingRows
from cpo_ray.training.step_checks import first_step
from cpo_ray.training.step_metrics import StepSums, step_metrics
from cpo_ray.training.task import Refusal
from tests.training.world import make_task

K = 4
OBJECTIVES = {
    "cpo": ObjectiveConfig(label_smoothing=0.1),
    "infonca": ObjectiveConfig(loss="infonca", score_temperature=0.5),
    "nca": ObjectiveConfig(loss="nca"),
    "lipo": ObjectiveConfig(loss="lipo"),
    "listwise": ObjectiveConfig(loss="listwise"),
    "simpo": ObjectiveConfig(loss="simpo", beta=2.0, gamma=1.0),
}
REF = torch.tensor([[-10.0, -12.0, -9.0, -30.0], [-20.0, -18.0, -22.0, -5.0]])
RANKS = np.array([[0, 2, 1, 3], [0, 1, 2, 3]])
KINDS = ["gold", *["batch"] * 3]
COLUMNS = {"id": ["a", "b"], "rank": RANKS.tolist(), "candidate_kind": [KINDS] * 2}
GROUP = [[5, 6, 0], [7, 0], [8, 9, 9, 0], [5, 0]]


def candidates(valid=None):
    rewards = torch.from_numpy(read_rewards(COLUMNS, OBJECTIVES["lipo"]))
    everyone = torch.ones(2, K, dtype=torch.bool)
    lengths = torch.tensor([[len(c) for c in GROUP]] * 2)
    return Candidates(REF, torch.from_numpy(RANKS), everyone if valid is None else valid, lengths, rewards)


class Engine:
    """An engine whose policy differs from the reference by `drift` (nats)."""

    device = torch.device("cpu")

    def __init__(self, drift):
        self.logps_BK = (REF + drift).requires_grad_()

    def __call__(self, packed):
        return self.logps_BK, None  # no routers


def take_step(objective, drift=0.0):
    """The loss, its gradient, the metrics and the check of a first step."""
    task = make_task(Path("world"), objective=objective)
    rewards = read_rewards(COLUMNS, objective)
    rows = TrainingRows(
        ["a", "b"], [[1, 2]] * 2, [GROUP] * 2, [KINDS] * 2, RANKS, REF.numpy().astype(np.float32), None, rewards
    )
    engine, sums = Engine(drift), StepSums(torch.device("cpu"), ["gold", "batch"])
    loss = microbatch_loss(engine, rows, [0, 1], task, 0, 1.0, sums)
    (gradient_BK,) = torch.autograd.grad(loss, engine.logps_BK)
    totals = dict(zip(sums.index, sums.sums.tolist(), strict=True))
    return (
        loss.item(),
        gradient_BK,
        step_metrics(totals, objective),
        first_step(totals, Batch(rows, [0, 1], KINDS), task),
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_first_step_passes_at_the_reference_and_only_there(name):
    objective = OBJECTIVES[name]
    loss, gradient_BK, metrics, first = take_step(objective)
    assert first.passes
    assert loss == metrics["loss"] == pytest.approx(first.expected_loss, abs=1e-5)
    assert gradient_BK[:, 0].max() < 0, "the gold's log-prob should rise"
    rounding = 1e-5 * (2 * torch.rand(2, K, generator=torch.Generator().manual_seed(1)) - 1)
    assert take_step(objective, rounding)[3].passes
    elsewhere = torch.tensor([[0.5, -0.5, 0.7, 0.0], [-0.3, 0.2, 0.0, 1.0]])
    assert not take_step(objective, elsewhere)[3].passes


@pytest.mark.parametrize(
    ("name", "expected"),
    [("cpo", math.log(24)), ("infonca", math.log(4)), ("listwise", math.log(4)), ("nca", 2 * math.log(2))],
)
def test_the_first_loss_is_known(name, expected):
    assert initial_loss(OBJECTIVES[name], REF, candidates()).item() == pytest.approx(2 * expected, abs=1e-5)


def test_the_first_loss_of_infonca_counts_valid_candidates():
    valid = torch.tensor([[True, False, True, True], [True, True, True, True]])
    expected = math.log(3) + math.log(4)
    assert initial_loss(OBJECTIVES["infonca"], REF, candidates(valid)).item() == pytest.approx(expected, abs=1e-5)


def test_simpo_starts_at_the_loss_of_the_reference_itself():
    """Scores 2 * log-prob / tokens: prompt 1 has -20/3, -12, -4.5, -30, and the gold's less 1."""
    scores = [[-20 / 3 - 1, -12, -4.5, -30], [-40 / 3 - 1, -18, -11, -5]]
    by_hand = sum(math.log(sum(map(math.exp, row))) - row[0] for row in scores)
    assert initial_loss(OBJECTIVES["simpo"], REF + 3.0, candidates()).item() == pytest.approx(by_hand, abs=1e-5)
    assert take_step(OBJECTIVES["simpo"])[3].name == "SimPO"


def test_the_order_of_equal_scores_does_not_change_whether_lipo_passes():
    """Rounding decides the order of scores that should be equal, and the order the weights: both sides use the same."""
    objective, losses = OBJECTIVES["lipo"], set()
    for seed in range(4):
        rounding = 1e-6 * torch.randn(2, K, generator=torch.Generator().manual_seed(seed))
        _, _, metrics, first = take_step(objective, rounding)
        assert first.passes
        losses.add(round(metrics["loss"], 3))
    assert len(losses) > 1


def test_the_metrics_of_simpo_are_about_log_probs_per_token():
    scores = implicit_rewards(OBJECTIVES["simpo"], REF, candidates())
    assert scores[0].tolist() == pytest.approx([-20 / 3, -12, -4.5, -30])
    assert take_step(OBJECTIVES["simpo"])[2]["accuracy"] == 0.0  # prompt 1: -4.5 is above the gold; prompt 2: -5 is
    assert torch.equal(implicit_rewards(OBJECTIVES["nca"], REF, candidates()), torch.zeros(2, K))


def test_per_token_scores_in_other_losses():
    objective = ObjectiveConfig(loss="infonca", length_normalised=True)
    policy = REF + torch.tensor([[3.0, 2.0, 4.0, 2.0]] * 2)  # one nat per token each
    torch.testing.assert_close(group_loss(objective, policy, candidates()), torch.full((2,), math.log(4)))


def test_the_tolerance_grows_with_what_can_round():
    assert initial_loss_tolerance(OBJECTIVES["cpo"], 12) == pytest.approx(1e-3 + 2 * 11 * 5 * 1e-5)
    assert initial_loss_tolerance(OBJECTIVES["infonca"], 12) == pytest.approx(1e-3 + 2 * 5 * 1e-5)
    assert initial_loss_tolerance(OBJECTIVES["lipo"], 12, 3 * math.log(2)) == pytest.approx(1e-3 + 2 * 3 * 5 * 1e-5)


def test_rewards_by_rank_similarity_and_score():
    columns = {"id": ["a"], "candidate_kind": [KINDS], "rank": [[0, 3, 1, 2]]}
    columns |= {"similarity": [[1.0, -0.2, 0.9, 0.5]], "score": [[7, 1, 5, 5]]}
    found = {
        which: read_rewards(columns, ObjectiveConfig(loss="infonca", scores=which))
        for which in ("rank", "similarity", "given")
    }
    assert found["rank"].tolist() == [pytest.approx([1, 0, 2 / 3, 1 / 3])]
    assert found["similarity"].tolist() == [pytest.approx([1.0, -0.2, 0.9, 0.5])]
    assert found["given"].tolist() == [[7, 1, 5, 5]]
    assert read_rewards(columns, ObjectiveConfig()) is None


def test_rewards_by_rank_are_from_1_to_0_in_a_group_with_fewer_candidates_too():
    """The last of four fills up a group of three, two of which tie."""
    columns = {"id": ["a"], "candidate_kind": [["gold", "answer", "answer", "gold"]], "rank": [[0, 0, 2, 3]]}
    assert read_rewards(columns, ObjectiveConfig(loss="infonca")).tolist() == [[1, 1, 0, 0]]


def test_scores_that_cannot_be_trained_on_are_refused_with_the_rows():
    given = ObjectiveConfig(loss="infonca", scores="given")
    shares = ObjectiveConfig(loss="listwise", scores="given")
    ids = {"id": ["a", "b"]}
    with pytest.raises(
        Refusal, match=r"needs a score of every candidate; there is none in rows a, b\. Use groups with"
    ):
        read_rewards(ids, given)
    with pytest.raises(Refusal, match="there is none in rows b"):
        read_rewards(ids | {"score": [[1.0, 0.0], None]}, given)
    with pytest.raises(Refusal, match="there is none in rows a"):
        read_rewards(ids | {"score": [[1.0, None], [1.0, 0.0]]}, given)
    with pytest.raises(Refusal, match="scores are not finite in rows b"):
        read_rewards(ids | {"score": [[1.0, 0.0], [1.0, float("nan")]]}, given)
    with pytest.raises(Refusal, match=r"scores are negative, and loss: listwise needs shares .* in rows a"):
        read_rewards(ids | {"score": [[1.0, -1.0], [1.0, 0.0]]}, shares)
    with pytest.raises(Refusal, match="all groups must have the same K"):
        read_rewards(ids | {"score": [[1.0, 0.0], [1.0]]}, given)
