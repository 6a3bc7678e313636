"""The first step of CPO in bf16, on CPU: honest runs must pass, groups scored in another way must be refused.

    python -m benchmarks.bf16                              26 layers, 200 seeds
    python -m benchmarks.bf16 --width 128 --model FOLDER   the same with trained weights
    python -m benchmarks.bf16 --layers 2 --seeds 5         a test of the script

A seed draws the weights, the prompts and the negatives (K = 12: 3 BN, 5 MN, 3 TN). The scorer's code scores them and measures
rounding; the trainer's code computes the first step in its own microbatches and decides. The weights are random and large, so
the model depends on its whole context and rounding is large. For each seed the reference scores are then replaced by those of
another model (random weights), tokenizer, template or truncation (the prompt's first half is missing).
"""

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.bf16_groups import (
    FAULTS,
    SCALE,
    Texts,
    load_model,
    make_groups,
    make_model,
    read_texts,
    score_wrongly,
    train,
)  # fmt: skip
from benchmarks.results import RESULTS, machine, ratio, write_results
from cpo_ray.config import ObjectiveConfig, TrainingConfig
from cpo_ray.objective.cost import model_shape
from cpo_ray.objective.logprobs import candidate_logps
from cpo_ray.objective.losses import cpo_loss
from cpo_ray.objective.packing import PackedGroups
from cpo_ray.records import Group
from cpo_ray.sampling import scoring
from cpo_ray.sampling.scoring import BATCH_TOKENS
from cpo_ray.training.batch_order import split_batch
from cpo_ray.training.loader import COLUMNS, Batch
from cpo_ray.training.microbatch import microbatch_loss, pack_microbatch
from cpo_ray.training.rows import TrainingRows
from cpo_ray.training.step_checks import FirstStep, first_step
from cpo_ray.training.step_metrics import StepSums
from cpo_ray.training.task import Task

MICROBATCH, CANDIDATES = 4, 12
OTHER = 10_000  # seeds of the other weights begin here


class Engine:
    """DeepSpeed's engine as `microbatch_loss` uses it. Computes the log-probs of each microbatch once."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.device = model, model.device
        self.logps: dict[tuple[int, ...], Tensor] = {}

    @torch.no_grad()
    def __call__(self, packed: PackedGroups) -> tuple[Tensor, None]:
        key = tuple(packed.input_ids_RN.flatten().tolist())
        if key not in self.logps:
            self.logps[key] = candidate_logps(self.model, packed)
        return self.logps[key], None


def take_first_step(engine: Engine, groups: list[Group], objective: ObjectiveConfig) -> tuple[FirstStep, Tensor]:
    """What the trainer sees at its first step, and the drift of every candidate, (B, K) nats, in the trainer's order."""
    workers = {"prompts_per_step": len(groups), "prompts_per_microbatch": MICROBATCH, "workers": 1}
    training = TrainingConfig(precision="bf16", **workers)
    task = Task("cpo", training, objective, None, "", Path(), None, seed=1, cuda=False, threads=1)
    rows = TrainingRows.from_groups({name: [dict(group).get(name) for group in groups] for name in COLUMNS}, task)
    batch, shape = Batch(rows, list(range(len(groups))), rows.every_kind), model_shape(engine.model)
    costs = [shape.forward_flops(rows.sizes[row]) for row in batch.numbers]
    (parts,) = split_batch(batch.numbers, costs, 1, len(groups) // MICROBATCH)
    sums = StepSums(engine.device, batch.kinds)
    for part in parts:
        microbatch_loss(engine, rows, part, task, 0, 1.0, sums)
    policy_BK = torch.cat([engine(pack_microbatch(engine, rows, part, task, 0))[0] for part in parts]).cpu()
    drift_BK = policy_BK - torch.from_numpy(rows.ref_logps[[row for part in parts for row in part]])
    return first_step(dict(zip(sums.index, sums.sums.tolist(), strict=True)), batch, task), drift_BK


def one_seed(seed: int, texts: Texts, make: Callable[[int], PreTrainedModel], beta: float) -> dict[str, Any]:
    """The honest first step and the faulty ones: `FirstStep` by name, and the honest drift."""
    objective, model = ObjectiveConfig(beta=beta), make(seed)
    engine = Engine(model)
    groups, rows = make_groups(texts, random.Random(seed))
    # Every other scorer computes its groups one at a time, which the trainer does not.
    scoring.BATCH_TOKENS = 1 if seed % 2 else BATCH_TOKENS
    scoring.score(model, groups)
    scoring.measure_spread(model, groups, MICROBATCH)
    honest, drift_BK = take_first_step(engine, groups, objective)
    found: dict[str, Any] = {"honest": honest, "drift": drift_BK}
    other = make(seed + OTHER)
    for name in FAULTS:
        found[name] = take_first_step(engine, score_wrongly(name, model, other, groups, rows, texts), objective)[0]
    return found


def gradient_share(drifts: Sequence[Tensor], beta: float) -> float:
    """Which share of beta the drifts leave in the mean gradient of the ranked loss, measured.

    The true scores fall by half a nat from rank to rank, as after some training. The share is that of the true scores whose
    gradient is closest to the mean gradient with the drifts added; without noise it is 1.
    """
    noise_BK = beta * torch.cat(list(drifts)).double()
    true_BK = -0.5 * torch.arange(noise_BK.shape[1], dtype=torch.float64).expand_as(noise_BK)
    shuffled = torch.Generator().manual_seed(0)
    order_BK = torch.rand(noise_BK.shape, generator=shuffled).argsort(dim=1)  # noise does not depend on the rank
    mean = _gradient(true_BK + noise_BK.gather(1, order_BK)).mean(dim=0)
    shares = torch.linspace(0.2, 1.2, 1001, dtype=torch.float64)
    distances = (_gradient(true_BK[:1] * shares[:, None]) - mean).norm(dim=1)
    return float(shares[distances.argmin()])


def _gradient(scores_BK: Tensor) -> Tensor:
    scores_BK = scores_BK.clone().requires_grad_()
    ranks_BK = torch.arange(scores_BK.shape[1]).expand_as(scores_BK)
    (gradient_BK,) = torch.autograd.grad(
        cpo_loss(scores_BK, torch.zeros_like(scores_BK), 1.0, ranks_BK).sum(), scores_BK
    )
    return gradient_BK


def results(found: Sequence[dict[str, Any]], beta: float) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The ratios, and figures beside them, of all seeds."""
    honest: list[FirstStep] = [each["honest"] for each in found]
    ratios = {"honest_pass": _share([first.passes for first in honest], "of honest runs pass", "all seeds")}
    for name in FAULTS:
        refused = [not each[name].passes for each in found]
        ratios[f"{name}_refused"] = _share(refused, f"of the runs scored with another {name} are refused", "all seeds")
    shares = [first.beta_share for first in honest]
    measured = gradient_share([each["drift"] for each in found], beta)
    ratios["beta_share"] = ratio(shares, ">= 0.9", "exact scores", "of beta is left under rounding noise")
    ratios["beta_share_of_the_gradient"] = ratio(
        [measured], ">= 0.9", "exact scores", "of beta is left in the mean gradient"
    )
    drifts = torch.cat([each["drift"] for each in found])
    more = {
        "noise_nat_per_sqrt_token": _spread([first.noise or 0.0 for first in honest]),
        "first_drift_nat_per_sqrt_token": _spread([first.drift for first in honest]),
        "drift_over_tolerance": _spread([first.drift / (first.drift_tolerance or 1.0) for first in honest]),
        "drift_nat": {
            "rms": float(drifts.square().mean().sqrt()),
            "mean": float(drifts.mean()),
            "candidates": drifts.numel(),
        },
        "first_loss_above_expected": _spread([first.loss - first.expected_loss for first in honest]),
        "predicted_rise": _spread([first.loss_rise for first in honest]),
        "refused_by_a_fixed_tolerance_of_0.03_nat": sum(
            abs(first.loss - first.expected_loss) > 1e-3 + 2 * (CANDIDATES - 1) * beta * 0.03 for first in honest
        ),
        "faults_drift_over_tolerance": {
            name: _spread([each[name].drift / (each[name].drift_tolerance or 1.0) for each in found]) for name in FAULTS
        },
    }
    return ratios, more


def _share(flags: list[bool], what: str, baseline: str) -> dict[str, Any]:
    return ratio([sum(flags) / len(flags)], ">= 1", baseline, what) | {"pairs": len(flags)}


def _spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": float(np.median(values)), "max": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=26)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--scale", type=float, default=SCALE)
    parser.add_argument("--beta", type=float, default=5.0)
    parser.add_argument(
        "--model", type=Path, help="use this model for every seed; if missing, it is trained first (400 steps)"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "bf16.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    texts = read_texts()

    if options.model is not None and not options.model.exists():
        train(options.model, texts, options.layers, options.width)

    def make(seed: int) -> PreTrainedModel:
        if options.model is None or seed >= OTHER:
            return make_model(seed, options.layers, options.width, options.scale)
        return load_model(options.model)

    found = []
    for seed in range(options.seeds):
        found.append(one_seed(seed, texts, make, options.beta))
        if seed % 10 == 9:
            sys.stderr.write(f"{seed + 1} seeds\n")
    ratios, more = results(found, options.beta)
    weights = "trained weights" if options.model else "random weights"
    command = f"python -m benchmarks.bf16 {' '.join(sys.argv[1:])}".rstrip()
    write_results(options.out, command, machine(f"{options.layers} layers of {options.width}", weights), ratios, **more)


if __name__ == "__main__":
    main()
