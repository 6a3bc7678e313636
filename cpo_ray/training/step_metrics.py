"""The metrics of a step: sums on each worker, all-reduced over workers before they become means."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cpo_ray.config import ObjectiveConfig
from cpo_ray.objective.losses import gold_first, rank_accuracy, reward_margin
from cpo_ray.objective.noise import score_variance
from cpo_ray.training.group_loss import Candidates, implicit_rewards, initial_loss

NAMES = ["prompts", "target_tokens", "tokens", "loss", "expected_loss", "gold_logp", "gold_drift", "gold_first"]
NAMES += ["rank_accuracy", "margin", "with_negatives", "masked", "nonfinite_losses", "nonfinite_gradients"]
NAMES += ["joint_loss", "mle_gradient", "cpo_gradient", "drift_squares", "drift_candidates", "score_variance"]
NAMES += ["router_loss"]
GOLD = "gold"


class StepSums:
    """Sums over one worker's prompts of a step. They stay on the device: nothing but `all_reduce` waits for it."""

    def __init__(self, device: torch.device, kinds: Sequence[str]) -> None:
        """kinds: of the candidates, the same on every worker."""
        self.kinds = [kind for kind in kinds if kind != GOLD]
        names = [*NAMES, *(f"{kind} {what}" for kind in self.kinds for what in ("logp", "drift", "count"))]
        self.index = {name: i for i, name in enumerate(names)}
        self.sums = torch.zeros(len(names), dtype=torch.float64, device=device)
        self.finite: list[tuple[list[int], Tensor]] = []  # rows, and (B,) whether the loss of each is finite

    def add(self, **amounts: Any) -> None:
        """Add to sums by name: numbers, or tensors of one element."""
        for name, amount in amounts.items():
            self.sums[self.index[name]] += amount

    def add_mle(self, logp_B: Tensor, target_tokens: int, microbatch: list[int]) -> None:
        """One microbatch. logp_B: nats per prompt, summed over its target tokens (and averaged over the copies of PSS)."""
        total = logp_B.sum()
        self.add(prompts=len(microbatch), target_tokens=target_tokens, loss=-total, gold_logp=total)
        self._check_finite(logp_B, microbatch)

    def add_cpo(
        self,
        loss_B: Tensor,
        policy_BK: Tensor,
        candidates: Candidates,
        kinds: list[list[str]],
        microbatch: list[int],
        objective: ObjectiveConfig,
    ) -> None:
        """One microbatch of groups. loss_B: from `group_loss`. kinds: of each row's candidates. microbatch: row numbers."""
        size, valid_BK, ranks_BK = len(microbatch), candidates.valid_BK, candidates.ranks_BK
        drift_BK = policy_BK - candidates.ref_logps_BK
        copies = sum(names.count(GOLD) - 1 for names in kinds)  # they fill up groups that have fewer candidates
        worse_BK = valid_BK & (ranks_BK > 0) if candidates.ties else valid_BK.clone()  # than the gold, and itself
        worse_BK[:, 0] = True
        scores_BK = objective.beta * drift_BK
        if objective.loss != "cpo":
            scores_BK = implicit_rewards(objective, policy_BK, candidates)
        self.add(
            prompts=size,
            loss=loss_B.sum(),
            expected_loss=initial_loss(objective, policy_BK, candidates),
            gold_logp=policy_BK[:, 0].sum(),
            gold_drift=drift_BK[:, 0].sum(),
            gold_first=gold_first(scores_BK, worse_BK).sum(),
            rank_accuracy=rank_accuracy(scores_BK, ranks_BK, valid_BK).sum(),
            margin=reward_margin(scores_BK, worse_BK).sum(),
            with_negatives=worse_BK[:, 1:].any(dim=1).sum(),
            masked=(~valid_BK).sum() - copies,
        )
        for kind in self.kinds:
            of_kind_BK = torch.tensor([[name == kind for name in names] for names in kinds], device=policy_BK.device)
            logp, drift = (values.masked_fill(~of_kind_BK, 0.0).sum() for values in (policy_BK, drift_BK))
            self.add(**{f"{kind} logp": logp, f"{kind} drift": drift, f"{kind} count": of_kind_BK.sum()})
        self._check_finite(loss_B, microbatch)

    def add_drift(self, drift_BK: Tensor, lengths_BK: Tensor, valid_BK: Tensor, objective: ObjectiveConfig) -> None:
        """One microbatch's drift, policy minus reference log-prob: at the first step nothing but rounding noise.

        lengths_BK: tokens of each continuation.
        """
        per_token = objective.length_normalised or objective.loss == "simpo"
        scores_BK = objective.beta * drift_BK / (lengths_BK if per_token else 1)
        self.add(
            drift_squares=(drift_BK.square() / lengths_BK).masked_fill(~valid_BK, 0.0).sum(),
            drift_candidates=valid_BK.sum(),
            score_variance=score_variance(scores_BK, valid_BK).sum(),
        )

    def nonfinite_rows(self) -> list[int]:
        """Rows of this worker whose loss is not finite."""
        return [row for rows, flags in self.finite for row, ok in zip(rows, flags.tolist(), strict=True) if not ok]

    def all_reduce(self) -> dict[str, float]:
        """The sums over all workers, by name. All workers call it."""
        total = self.sums.clone()
        dist.all_reduce(total)
        return dict(zip(self.index, total.tolist(), strict=True))

    def _check_finite(self, values_B: Tensor, microbatch: list[int]) -> None:
        finite_B = values_B.isfinite()
        self.finite.append((microbatch, finite_B))
        self.add(nonfinite_losses=(~finite_B).sum())


def step_metrics(
    sums: dict[str, float], objective: ObjectiveConfig | None, sampled_from_step: int = 0
) -> dict[str, Any]:
    """Means over the prompts of a step, nats. The MLE loss is per token, everything else per prompt.

    `margin`: over the prompts with a negative that does not equal the gold; absent if there are none.
    `kl`: of the policy from the reference per continuation, KL(reference || policy), estimated on the autoregressive
    negatives, which are samples of the reference (top-k cut); absent without them, and if they are samples of the
    policy after `sampled_from_step` steps and not of the reference.
    `..._drift`: policy minus reference log-prob.
    `joint_loss`: what is differentiated, if that is more than the CPO loss. `mle_gradient_share`: of the joint loss, the MLE
    term's share |g_mle| / (|g_mle| + |g_cpo|) of the gradient with respect to the candidates' log-probs, sums of magnitudes.
    `router_loss`: the auxiliary loss of a model's routers, without its coefficient, if it is on.
    """
    n = sums["prompts"]
    router = {"router_loss": sums["router_loss"] / n} if sums["router_loss"] else {}  # it is never 0
    if objective is None:
        return {"loss": sums["loss"] / sums["target_tokens"], "gold_logp": sums["gold_logp"] / n} | router
    counts = {name.removesuffix(" count"): value for name, value in sums.items() if name.endswith(" count") and value}
    drift = {kind: sums[f"{kind} drift"] / count for kind, count in counts.items()}
    metrics = {
        "loss": sums["loss"] / n,
        "gold_logp": sums["gold_logp"] / n,
        "gold_drift": sums["gold_drift"] / n,
        "accuracy": sums["gold_first"] / n,
        "rank_accuracy": sums["rank_accuracy"] / n,
        "masked": int(sums["masked"]),
        "negative_logp": {kind: sums[f"{kind} logp"] / count for kind, count in counts.items()},
        "negative_drift": drift,
    } | router
    if objective.mle_weight or objective.gold_floor_weight:
        metrics["joint_loss"] = sums["joint_loss"] / n
    if objective.mle_weight:
        metrics["mle_gradient_share"] = sums["mle_gradient"] / (sums["mle_gradient"] + sums["cpo_gradient"])
    if sums["with_negatives"]:
        metrics["margin"] = sums["margin"] / sums["with_negatives"]
    if "autoregressive" in drift and sampled_from_step == 0:
        metrics["kl"] = -drift["autoregressive"]
    return metrics
