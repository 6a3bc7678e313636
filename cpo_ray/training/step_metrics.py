"""What a step's metrics are made of: sums on each worker, added up over workers before they become means."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cpo_ray.config import ObjectiveConfig
from cpo_ray.objective.losses import gold_first, initial_cpo_loss, rank_accuracy, reward_margin

NAMES = ["prompts", "targets", "tokens", "loss", "gold_logp", "gold_drift", "margin", "first", "order", "masked"]
NAMES += ["opposed", "expected", "broken", "broken_gradients", "save", "ask"]
GOLD = "gold"


class Tally:
    """One worker's sums over a step's prompts. They stay on the device: nothing here waits for it."""

    def __init__(self, device: torch.device, kinds: Sequence[str]) -> None:
        """kinds: of the negatives, the same on every worker."""
        self.kinds = [kind for kind in kinds if kind != GOLD]
        names = [*NAMES, *(f"{kind} {what}" for kind in self.kinds for what in ("logp", "drift", "count"))]
        self.place = {name: i for i, name in enumerate(names)}
        self.sums = torch.zeros(len(names), dtype=torch.float64, device=device)
        self.judged: list[tuple[list[int], Tensor]] = []  # rows, and whether each one's loss is finite

    def add(self, **amounts: Any) -> None:
        """Add to sums by name; tensors of one element or numbers."""
        for name, amount in amounts.items():
            self.sums[self.place[name]] += amount

    def add_mle(self, logp_B: Tensor, targets: int, microbatch: list[int]) -> None:
        """One microbatch: each prompt's log-probs, summed over its `targets` tokens (and over PSS's copies)."""
        total = logp_B.sum()
        self.add(prompts=len(microbatch), targets=targets, loss=-total, gold_logp=total)
        self._judge(logp_B, microbatch)

    def add_cpo(
        self,
        loss_B: Tensor,
        policy_BK: Tensor,
        ref_BK: Tensor,
        valid_BK: Tensor,
        ranks_BK: Tensor,
        kinds: list[list[str]],
        microbatch: list[int],
        objective: ObjectiveConfig,
    ) -> None:
        """One microbatch of groups."""
        size = len(microbatch)
        drift_BK = policy_BK - ref_BK
        scores_BK = objective.beta * drift_BK
        self.add(
            prompts=size,
            loss=loss_B.sum(),
            gold_logp=policy_BK[:, 0].sum(),
            gold_drift=drift_BK[:, 0].sum(),
            margin=reward_margin(scores_BK, valid_BK).sum(),
            opposed=valid_BK[:, 1:].any(dim=1).sum(),
            first=gold_first(scores_BK, valid_BK).sum(),
            order=rank_accuracy(scores_BK, ranks_BK, valid_BK).sum(),
            masked=(~valid_BK).sum(),
            expected=initial_cpo_loss(valid_BK, ranked=objective.ranked) * size,
        )
        for kind in self.kinds:
            of_kind_BK = torch.tensor([[name == kind for name in names] for names in kinds], device=policy_BK.device)
            logp, drift = (values.masked_fill(~of_kind_BK, 0.0).sum() for values in (policy_BK, drift_BK))
            self.add(**{f"{kind} logp": logp, f"{kind} drift": drift, f"{kind} count": of_kind_BK.sum()})
        self._judge(loss_B, microbatch)

    def broken_rows(self) -> list[int]:
        """Rows of this worker whose loss is not finite."""
        return [row for rows, fine in self.judged for row, good in zip(rows, fine.tolist(), strict=True) if not good]

    def over_workers(self) -> dict[str, float]:
        """The sums over all workers: one all-reduce."""
        total = self.sums.clone()
        dist.all_reduce(total)
        return dict(zip(self.place, total.tolist(), strict=True))

    def _judge(self, values_B: Tensor, microbatch: list[int]) -> None:
        fine_B = values_B.isfinite()
        self.judged.append((microbatch, fine_B))
        self.add(broken=(~fine_B).sum())


def step_metrics(
    sums: dict[str, float], objective: ObjectiveConfig | None, sampled_from_step: int = 0
) -> dict[str, Any]:
    """Means over a step's prompts, nats. The MLE loss is per token, everything else per prompt.

    `margin`: over the prompts with a negative that does not equal the gold; absent where there is none.
    `kl`: of the policy from the reference per continuation, KL(reference || policy), estimated on the autoregressive
    negatives, which are samples of the reference (top-k cut); absent without them, and where they are samples of the
    policy after `sampled_from_step` steps.
    `..._drift`: policy minus reference log-prob.
    """
    n = sums["prompts"]
    if objective is None:
        return {"loss": sums["loss"] / sums["targets"], "gold_logp": sums["gold_logp"] / n}
    counts = {name.removesuffix(" count"): value for name, value in sums.items() if name.endswith(" count") and value}
    drift = {kind: sums[f"{kind} drift"] / count for kind, count in counts.items()}
    metrics = {
        "loss": sums["loss"] / n,
        "gold_logp": sums["gold_logp"] / n,
        "gold_drift": sums["gold_drift"] / n,
        "accuracy": sums["first"] / n,
        "rank_accuracy": sums["order"] / n,
        "masked": int(sums["masked"]),
        "negative_logp": {kind: sums[f"{kind} logp"] / count for kind, count in counts.items()},
        "negative_drift": drift,
    }
    if sums["opposed"]:
        metrics["margin"] = sums["margin"] / sums["opposed"]
    if "autoregressive" in drift and sampled_from_step == 0:
        metrics["kl"] = -drift["autoregressive"]
    return metrics
