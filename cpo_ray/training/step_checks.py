"""Checks of a step's sums before the optimizer moves: everything is finite, and the policy starts at the reference."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from cpo_ray.config.objective import LOSS_NAMES
from cpo_ray.objective.noise import beta_share
from cpo_ray.training.group_loss import initial_loss_rise, initial_loss_tolerance
from cpo_ray.training.loader import Batch
from cpo_ray.training.step_metrics import StepSums
from cpo_ray.training.task import Refusal, Task

NOISE_FACTOR = 3.0
"""In bf16: the first step may show this many times the noise that the scorer measured between packings."""
LEAST_NOISE = 0.02
"""In bf16: the least noise to suppose (nat per sqrt(token)). A scorer whose packings happen to agree measures 0."""
UNMEASURED_NOISE = 0.1
"""In bf16: the noise to suppose of groups without a measurement; 26 layers with random weights have 0.05 to 0.07."""

FIRST_STEP_SUMS = ("loss", "expected_loss", "drift_squares", "drift_candidates", "score_variance")


@dataclass(frozen=True)
class FirstStep:
    """What the first CPO step shows, and what is allowed. Noise and drift are in nat per sqrt(token): see `objective.noise`.

    In float32 the loss decides, in bf16 the drift: rounding raises the loss by any amount at a large beta, but moves no
    log-prob further than was measured.
    """

    loss: float
    expected_loss: float  # for CPO log K or log K!, otherwise see `initial_loss`
    drift: float  # root mean square over the valid candidates of (policy - reference log-prob) / sqrt(tokens)
    noise: float | None  # measured in sampling
    loss_rise: float  # what noise as large as the drift adds to the loss
    beta_share: float  # which share of beta such noise leaves
    loss_tolerance: float | None  # float32
    drift_tolerance: float | None  # bf16
    name: str = "CPO"  # of the loss

    @property
    def passes(self) -> bool:
        """Whether the policy may be the reference that scored the groups."""
        if self.drift_tolerance is not None:
            return self.drift <= self.drift_tolerance
        return abs(self.loss - self.expected_loss) <= (self.loss_tolerance or 0.0)

    def metrics(self) -> dict[str, Any]:
        """For the metrics of step 1."""
        if self.drift_tolerance is None:
            return {"expected_loss": self.expected_loss, "loss_tolerance": self.loss_tolerance}
        numbers = {"first_drift": self.drift, "drift_tolerance": self.drift_tolerance, "rounding_loss": self.loss_rise}
        measured = {} if self.noise is None else {"scoring_noise": self.noise}
        return {"expected_loss": self.expected_loss, "beta_share": self.beta_share} | numbers | measured

    def __str__(self) -> str:
        if self.drift_tolerance is None:
            return (
                f"the first {self.name} loss is {self.loss:.4f} but must be {self.expected_loss:.4f} "
                f"(tolerance {self.loss_tolerance:g})"
            )
        known = (
            f"the {self.noise:.4f} of rounding that was measured when the groups were scored"
            if self.noise is not None
            else f"{UNMEASURED_NOISE}, as the groups do not say how large rounding is"
        )
        return (
            f"the first {self.name} loss is {self.loss:.4f} but must be {self.expected_loss:.4f} up to rounding: the log-probs "
            f"differ from the reference's by {self.drift:.4f} nat per sqrt(token), the tolerance is {self.drift_tolerance:.4f} "
            f"({NOISE_FACTOR:g} times {known}, at least {LEAST_NOISE:g})"
        )


def check_step(
    totals: dict[str, float], own: StepSums, batch: Batch, task: Task, step: int, describe: Callable[[int], str]
) -> None:
    """Raise Refusal if a loss or a gradient is not finite, or if the first CPO loss is not that of the reference.

    If the reference moves in a stream, the first loss under each is checked.

    totals: `own` (this worker's sums) over all workers. Every worker has the same totals, so all refuse or none.
    describe: the name of one of this worker's rows whose loss is not finite, and what is known of the cause.
    """
    if totals["nonfinite_losses"]:
        gathered: list[list[str]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(gathered, [describe(row) for row in own.nonfinite_rows()[:10]])
        names = [name for found in gathered for name in found]
        raise Refusal(f"step {step + 1}: the loss is not finite for rows {', '.join(names[:10])}; no step was taken")
    if totals["nonfinite_gradients"]:
        raise Refusal(
            f"step {step + 1}: a gradient is not finite, though every loss is; no step was taken. The batch's rows: "
            f"{', '.join(batch.ids[:10])}{' ...' if len(batch.ids) > 10 else ''}. "
            "Try training.precision fp32 or a lower learning rate."
        )
    if task.starts_at_reference(step):
        first = first_step(totals, batch, task)
        if not first.passes:
            at = f"step {step + 1}, under a new reference: " if step else ""
            raise Refusal(
                f"{at}{first}: the policy is not the reference that scored the groups. Were they made with another model, "
                "tokenizer, template, truncation or dtype? Make the groups again from this reference."
            )


def first_step(totals: dict[str, float], batch: Batch, task: Task) -> FirstStep:
    """The first CPO step from its sums over all workers (FIRST_STEP_SUMS). Call it for tasks with an objective."""
    if task.objective is None:
        raise ValueError(f"training `{task.stage}` has no CPO loss")
    prompts, candidates, objective = len(batch.ids), batch.rows.ranks.shape[1], task.objective
    variance, exact = totals["score_variance"] / prompts, task.training.precision == "fp32"
    noise, expected = batch.rows.noise, totals["expected_loss"] / prompts
    supposed = max(LEAST_NOISE, UNMEASURED_NOISE if noise is None else noise)
    return FirstStep(
        loss=totals["loss"] / prompts,
        expected_loss=expected,
        drift=math.sqrt(totals["drift_squares"] / totals["drift_candidates"]),
        noise=noise,
        loss_rise=initial_loss_rise(objective, variance, candidates, expected),
        beta_share=beta_share(variance),
        loss_tolerance=initial_loss_tolerance(objective, candidates, expected) if exact else None,
        drift_tolerance=None if exact else NOISE_FACTOR * supposed,
        name=LOSS_NAMES[objective.loss],
    )
