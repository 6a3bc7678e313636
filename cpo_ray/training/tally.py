"""What a step's metrics are made of: sums on each worker, added up before they become means."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cpo_ray.config import ObjectiveConfig
from cpo_ray.objective.losses import gold_first, initial_cpo_loss, reward_margin
from cpo_ray.records import NEGATIVE_KINDS
from cpo_ray.training.task import Task


class Tally:
    """Sums over a step's prompts, added up over workers before they become means."""

    NAMES = ("prompts", "gold_tokens", "loss", "gold_logp", "margin", "first", "masked", "expected", "broken", "tokens")

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sums = dict.fromkeys(self.NAMES, 0.0)
        self.kinds = {kind: [0.0, 0.0] for kind in NEGATIVE_KINDS}  # sum of log-probs, count
        self.broken_rows: list[int] = []
        self.tokens = 0

    def add_mle(self, gold_logp_B: Tensor, gold_tokens: int, microbatch: list[int]) -> None:
        """One microbatch of golds."""
        self._add(
            prompts=len(microbatch), gold_tokens=gold_tokens, loss=-gold_logp_B.sum(), gold_logp=gold_logp_B.sum()
        )
        self._note_broken(gold_logp_B, microbatch)

    def add_cpo(
        self,
        loss_B: Tensor,
        policy_BK: Tensor,
        ref_BK: Tensor,
        valid_BK: Tensor,
        kinds: list[list[str]],
        microbatch: list[int],
        objective: ObjectiveConfig,
    ) -> None:
        """One microbatch of groups."""
        size = len(microbatch)
        scores_BK = objective.beta * (policy_BK - ref_BK)
        self._add(
            prompts=size,
            loss=loss_B.sum(),
            gold_logp=policy_BK[:, 0].sum(),
            margin=reward_margin(scores_BK, valid_BK) * size,
            first=gold_first(scores_BK, valid_BK).sum(),
            masked=(~valid_BK).sum(),
            expected=initial_cpo_loss(valid_BK, ranked=objective.ranked) * size,
        )
        for logps, names in zip(policy_BK.tolist(), kinds, strict=True):
            for logp, kind in zip(logps[1:], names[1:], strict=True):
                self.kinds[kind][0] += logp
                self.kinds[kind][1] += 1
        self._note_broken(loss_B, microbatch)

    def over_workers(self) -> "Tally":
        """The same tally, summed over all workers: one all-reduce."""
        flat = [*self.sums.values(), *(n for pair in self.kinds.values() for n in pair)]
        vector = torch.tensor(flat, dtype=torch.float64, device=self.device)
        vector[self.NAMES.index("tokens")] = self.tokens
        dist.all_reduce(vector)
        total = Tally(self.device)
        values = vector.tolist()
        total.sums = dict(zip(self.NAMES, values, strict=False))
        pairs = values[len(self.NAMES) :]
        total.kinds = {kind: pairs[2 * i : 2 * i + 2] for i, kind in enumerate(NEGATIVE_KINDS)}
        total.tokens = int(total.sums["tokens"])
        return total

    def metrics(self, task: Task) -> dict[str, Any]:
        """Means over the step's prompts; the MLE loss is per token, everything else per prompt. Nats."""
        sums, n = self.sums, self.sums["prompts"]
        if task.objective is None:
            return {"loss": sums["loss"] / sums["gold_tokens"], "gold_logp": sums["gold_logp"] / n}
        return {
            "loss": sums["loss"] / n,
            "gold_logp": sums["gold_logp"] / n,
            "margin": sums["margin"] / n,
            "accuracy": sums["first"] / n,
            "masked": int(sums["masked"]),
            "negative_logp": {kind: total / count for kind, (total, count) in self.kinds.items() if count},
        }

    def _add(self, **amounts: Any) -> None:
        for name, amount in amounts.items():
            self.sums[name] += float(amount)

    def _note_broken(self, values_B: Tensor, microbatch: list[int]) -> None:
        broken = [row for row, fine in zip(microbatch, values_B.isfinite().tolist(), strict=True) if not fine]
        self.broken_rows.extend(broken)
        self.sums["broken"] += len(broken)
