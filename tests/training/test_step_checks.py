import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from cpo_ray.config import ObjectiveConfig, TrainingConfig
from cpo_ray.objective.packing import pack_groups
from cpo_ray.training import microbatch
from cpo_ray.training.group_loss import initial_loss_tolerance
from cpo_ray.training.loader import Batch
from cpo_ray.training.rows import TrainingRows
from cpo_ray.training.step_checks import check_step, first_step
from cpo_ray.training.step_metrics import StepSums
from cpo_ray.training.task import Refusal, Task
from tests.training.world import make_task

PROMPTS, K, TOKENS = 8, 12, 16


@pytest.fixture(autouse=True)
def without_packing(monkeypatch):
    """The policy's log-probs are given here: growing a tree for each of 200 seeds would only take time."""
    packed = pack_groups([[1]], [[[2]]])
    monkeypatch.setattr(microbatch, "pack_microbatch", lambda *_: packed)


@dataclass(frozen=True)
class Engine:
    device: torch.device
    policy_BK: torch.Tensor

    def __call__(self, packed):
        return self.policy_BK, None


def noise(nats, seed=0):
    return np.random.default_rng(seed).normal(0, nats, (PROMPTS, K))


def is_refused(drift_BK, **settings):
    try:
        take_first_step(drift_BK, **settings)
    except Refusal:
        return True
    return False


def take_first_step(drift_BK, *, precision="bf16", noise=0.05, **objective):
    """The first step of groups whose policy and reference differ by this drift (nats). Raises Refusal if it is refused."""
    task = Task(
        stage="cpo",
        training=TrainingConfig(precision=precision, prompts_per_step=PROMPTS, prompts_per_microbatch=4),
        objective=ObjectiveConfig(**objective),
        scheduled_sampling=None,
        model="",
        rows=Path(),
        validation=None,
        seed=1,
        cuda=False,
        threads=1,
    )
    generator = np.random.default_rng(5)
    candidates = generator.integers(2, 50, (PROMPTS, K, TOKENS)).tolist()
    ranks = np.array([[0, *generator.permutation(np.arange(1, K))] for _ in range(PROMPTS)])
    ref = generator.normal(-40, 5, (PROMPTS, K)).astype(np.float32)
    names = [f"row-{row}" for row in range(PROMPTS)]
    kinds = [["gold"] + ["batch"] * (K - 1)] * PROMPTS
    rows = TrainingRows(names, [[1]] * PROMPTS, candidates, kinds, ranks, ref, noise)
    policy_BK = torch.from_numpy(ref) + torch.as_tensor(drift_BK, dtype=torch.float32)
    sums = StepSums(torch.device("cpu"), ["gold", "batch"])
    engine = Engine(torch.device("cpu"), policy_BK)
    microbatch.microbatch_loss(engine, rows, list(range(PROMPTS)), task, 0, 1.0, sums)
    totals = dict(zip(sums.index, sums.sums.tolist(), strict=True))
    batch = Batch(rows, list(range(PROMPTS)), ["gold", "batch"])
    check_step(totals, sums, batch, task, 0, rows.ids.__getitem__)
    return first_step(totals, batch, task)


def test_noise_of_a_fifth_of_a_nat_passes_the_ranked_check_of_twelve_candidates_at_beta_five():
    """0.05 nat per sqrt(token) and 16 tokens: what 26 layers in bf16 show. The loss itself is then 4 nats too high."""
    assert not any(is_refused(noise(0.2, seed), noise=0.05) for seed in range(200))
    first = take_first_step(noise(0.2), noise=0.05)
    assert first.expected_loss == pytest.approx(math.lgamma(13))
    assert first.loss > first.expected_loss + 2
    assert first.drift == pytest.approx(0.05, rel=0.2)
    assert first.drift_tolerance == pytest.approx(0.15)
    assert first.loss - first.expected_loss == pytest.approx(first.loss_rise, rel=0.5)


def test_log_probs_that_differ_by_more_than_the_measured_noise_are_refused():
    """From another model, tokenizer, template or truncation they differ by nats; here by one nat."""
    assert all(is_refused(noise(1.0, seed), noise=0.05) for seed in range(200))
    with pytest.raises(
        Refusal,
        match=r"first CPO loss is .* but must be 19\.9872 up to rounding: .* by 0\.2\d+ nat per sqrt\(token\), the "
        r"tolerance is 0\.1500 \(3 times the 0\.0500 of rounding that was measured .* truncation or dtype\? Make the groups",
    ):
        take_first_step(noise(1.0), noise=0.05)


def test_a_difference_that_all_candidates_share_is_refused_although_the_loss_does_not_show_it():
    """The reference scored another prompt: each candidate of a row differs alike, and every softmax is as expected."""
    with pytest.raises(Refusal, match=r"first CPO loss is 19\.9872 but must be 19\.9872 up to rounding"):
        take_first_step(np.full((PROMPTS, K), 3.0))


def test_groups_without_a_measurement_get_a_bound_that_no_honest_run_exceeds():
    assert not any(is_refused(noise(0.07 * 4, seed), noise=None) for seed in range(200))  # 16 tokens
    with pytest.raises(Refusal, match=r"3 times 0\.1, as the groups do not say how large rounding is"):
        take_first_step(noise(2.0), noise=None)


def test_a_scorer_whose_packings_agree_to_the_bit_still_allows_for_rounding():
    assert take_first_step(noise(0.1), noise=0.0).drift_tolerance == pytest.approx(0.06)


def test_in_float32_the_loss_decides_as_before():
    ranked, plain = ObjectiveConfig(beta=5.0), ObjectiveConfig(beta=0.1, ranked=False)
    assert initial_loss_tolerance(ranked, 12) == pytest.approx(1e-3 + 2 * 11 * 5 * 1e-5)
    assert initial_loss_tolerance(plain, 2) == pytest.approx(1e-3 + 2 * 0.1 * 1e-5)
    first = take_first_step(noise(1e-6), precision="fp32")
    assert first.loss == pytest.approx(math.lgamma(13), abs=1e-3)
    assert first.metrics() == {
        "expected_loss": first.expected_loss,
        "loss_tolerance": initial_loss_tolerance(ranked, 12),
    }
    with pytest.raises(
        Refusal, match=r"first CPO loss is 20\.\d+ but must be 19\.9872 \(tolerance 0\.0021\): the policy"
    ):
        take_first_step(noise(0.05), precision="fp32")


def test_the_metrics_of_the_first_step_in_bf16_say_what_was_measured_and_what_is_allowed():
    metrics = take_first_step(noise(0.2), noise=0.05).metrics()
    assert metrics["scoring_noise"] == 0.05
    assert metrics["drift_tolerance"] == pytest.approx(0.15)
    assert metrics["first_drift"] == pytest.approx(0.05, rel=0.2)
    assert metrics["beta_share"] == pytest.approx(
        1 / math.sqrt(1 + math.pi / 4), rel=0.1
    )  # 5 * 0.2 nat of noise a score
    assert "scoring_noise" not in take_first_step(noise(0.2), noise=None).metrics()


def test_scores_per_token_have_less_noise():
    summed, per_token = (take_first_step(noise(0.2), length_normalised=which) for which in (False, True))
    assert per_token.drift == pytest.approx(summed.drift)
    assert per_token.loss_rise == pytest.approx(summed.loss_rise / TOKENS**2)


@pytest.mark.e2e
@pytest.mark.usefixtures("alone")
def test_a_loss_that_is_not_finite_names_its_rows(world):
    task = make_task(world, workers=1)
    batch = Batch(TrainingRows.read(task.rows, task), [4, 5, 6], ["gold"])
    sums = StepSums(torch.device("cpu"), ["gold"])
    sums.add_mle(torch.tensor([-1.0, float("nan"), -2.0]), 9, batch.numbers)
    with pytest.raises(Refusal, match=r"step 8: the loss is not finite for rows row-5; no step was taken"):
        check_step(sums.all_reduce(), sums, batch, task, 7, batch.rows.ids.__getitem__)
