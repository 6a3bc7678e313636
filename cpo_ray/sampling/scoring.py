"""Meanfield negatives and reference log-probs: pure functions of the model, and their Ray Data actor."""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import torch
from transformers import PreTrainedModel

from cpo_ray.cluster.resources import pool_gpus
from cpo_ray.config import RunConfig, SamplingConfig
from cpo_ray.errors import TrainingError
from cpo_ray.objective import pretrained
from cpo_ray.objective.architectures import layout_of
from cpo_ray.objective.attention import use_tree_attention
from cpo_ray.objective.check import NotComputable, choose_groups, fall_back, first_not_finite, level_of, settle_layout
from cpo_ray.objective.logprobs import candidate_logps, gold_logits
from cpo_ray.objective.packing import fill_up, pack_groups
from cpo_ray.records import Group
from cpo_ray.sampling.negatives.meanfield import MeanfieldDraw, meanfield_draws, meanfield_negatives, union_positions
from cpo_ray.sampling.units import Unit, add_candidates, add_work, read_units, sort_candidates, write_units

log = logging.getLogger(__name__)

BATCH_TOKENS = 8192  # tokens per forward pass, before prefixes are shared
SPREAD_ROWS = 256  # rows, the first of a split, that are scored in other packings too, to measure rounding
BATCH_LOGITS = 2**26  # logits in memory for meanfield draws: 256 MiB


class Scorer:
    """Adds meanfield negatives, sorts the candidates and scores all K of them under the reference."""

    def __init__(self, config: RunConfig, reference: Path, eos: int) -> None:
        """Load the reference model. eos: its tokenizer's EOS."""
        torch.set_num_threads(config.cluster.threads_per_worker)
        self.config, self.eos = config, eos
        self.reference = load_model(reference, config)
        self.layout_checked = False  # whether its packed log-probs have been compared with its own
        self.policy: tuple[str, PreTrainedModel] = (
            "",
            self.reference,
        )  # folder, and the model that negatives are drawn from

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Add and score the last candidates of the batch's units, one unit after another."""
        units = read_units(batch)
        if not self.layout_checked and units:
            choose_layout(self.reference, units[0]["groups"])
            self.layout_checked = True
        for unit in units:
            if self.config.sampling.negatives.meanfield:
                add_meanfield(self._load_policy(unit["policy"]), unit, self.config.sampling, self.eos)
            moves = self.config.sampling.refresh_reference
            reference = self._load_policy(unit["policy"]) if moves else self.reference
            score(reference, unit["groups"])
            if measures_spread(unit["start"], self.config):
                measure_spread(reference, unit["groups"], self.config.training.prompts_per_microbatch)
        return write_units(units)

    def _load_policy(self, folder: str) -> PreTrainedModel:
        """The model in `folder`; "" is the reference. Only the latest policy stays in memory."""
        if self.policy[0] != folder:
            self.policy = folder, load_model(folder, self.config) if folder else self.reference
            if level_of(self.policy[1]) < level_of(self.reference):
                fall_back(self.policy[1], level_of(self.reference), str(layout_of(self.reference).separate))
        return self.policy[1]


def load_model(folder: str | Path, config: RunConfig) -> PreTrainedModel:
    """The model in `folder` in the trainer's precision, so that its log-probs equal the trainer's."""
    model = pretrained.load_adapted(folder, config.training.precision)
    model.to(config.cluster.device_of(pool_gpus(config, config.sampling.scorers)))
    use_tree_attention(model)  # as the trainer does, which also warns if it is not available
    return model


def choose_layout(model: PreTrainedModel, groups: Sequence[Group]) -> None:
    """Compare packed log-probs of a few groups with the model's own, and log which layout it needs if it is a slow one.

    Raises TrainingError if none is right.
    """
    chosen = choose_groups([group["prompt_ids"] for group in groups], [group["candidate_ids"] for group in groups])
    try:
        notice = settle_layout(model, *chosen)
    except NotComputable as error:
        raise TrainingError(str(error)) from None
    if notice is not None:
        log.warning("the reference's scores: %s", notice)


@torch.inference_mode()
def add_meanfield(model: PreTrainedModel, unit: Unit, config: SamplingConfig, eos: int) -> None:
    """Add the configured number of meanfield negatives to each group."""
    count, fraction, groups = config.negatives.meanfield, config.meanfield_fraction, unit["groups"]
    started, redraws, tokens = time.perf_counter(), 0, 0
    golds = [group["candidate_ids"][0] for group in groups]
    draws = [
        meanfield_draws(gold, count, fraction, unit["seed"], group["id"], eos, attempts=1 + config.redraws)
        for gold, group in zip(golds, groups, strict=True)
    ]
    vocabulary = model.get_output_embeddings().weight.shape[0]
    costs = [_gold_cost(group, draw, vocabulary) for group, draw in zip(groups, draws, strict=True)]
    for rows in batch_by_cost(costs, 1.0):
        logits = gold_logits(
            model,
            [groups[r]["prompt_ids"] for r in rows],
            [golds[r] for r in rows],
            [union_positions(draws[r]) for r in rows],
        )
        for r, logits_PV in zip(rows, logits, strict=True):
            if not torch.isfinite(logits_PV).all():
                where = _broken_layer(model, [groups[r]["prompt_ids"]], [[golds[r]]])
                raise TrainingError(f"the reference's logits for row {groups[r]['id']} are not finite: {where}")
            negatives, discarded = meanfield_negatives(golds[r], draws[r], logits_PV, eos, groups[r]["candidate_ids"])
            add_candidates(groups[r], "meanfield", negatives)
            redraws += discarded
            tokens += (count + discarded) * len(golds[r])
    add_work(unit, "meanfield", redraws=redraws, tokens=tokens, seconds=time.perf_counter() - started)


@torch.inference_mode()
def score(model: PreTrainedModel, groups: list[Group]) -> None:
    """Sort each group's candidates and set `ref_logps`, (K,) nats, prompt excluded, EOS included unless they are cut."""
    for group in groups:
        sort_candidates(group)
    costs = [(len(g["prompt_ids"]) + sum(map(len, g["candidate_ids"]))) / BATCH_TOKENS for g in groups]
    for rows in batch_by_cost(costs, 1.0):
        packed = pack_groups(
            [groups[r]["prompt_ids"] for r in rows], fill_up([groups[r]["candidate_ids"] for r in rows])
        )
        logps_BK = candidate_logps(model, packed.to(model.device)).tolist()
        for r, filled_logps in zip(rows, logps_BK, strict=True):
            logps = filled_logps[: len(groups[r]["candidate_ids"])]
            for logp, kind, candidate in zip(
                logps, groups[r]["candidate_kind"], groups[r]["candidate_ids"], strict=True
            ):
                if not math.isfinite(logp):
                    number = groups[r]["candidate_ids"].index(candidate)
                    where = _broken_layer(model, [groups[r]["prompt_ids"]], [[candidate]])
                    raise TrainingError(
                        f"the reference's log-probs for row {groups[r]['id']} are not finite: candidate {number} ({kind}) "
                        f"has {logp}; {where}"
                    )
            groups[r]["ref_logps"] = logps


def measures_spread(start: int, config: RunConfig) -> bool:
    """Whether rounding is measured in the unit that starts at `start`: at this row, or in a stream at this step.

    In a stream: at each step before which the policy is the reference, because training then checks its scores.
    """
    if config.training.precision == "fp32":
        return False
    if config.sampling.refresh_reference and config.sampling.refresh_steps is not None:
        return start % config.sampling.refresh_steps == 0
    return start < (1 if config.sampling.stream else SPREAD_ROWS)


@torch.inference_mode()
def measure_spread(model: PreTrainedModel, groups: list[Group], microbatch: int) -> None:
    """Set `ref_spread`: score the groups alone and in microbatches of the trainer's size, and keep the larger difference.

    `ref_logps` must be set. Some packings give the same bits, because their kernels sum in the same order: hence two.
    """
    most = max(len(group["ref_logps"]) for group in groups)
    scored_BK = torch.tensor(
        [[*logps, *logps[:1] * (most - len(logps))] for logps in (group["ref_logps"] for group in groups)]
    )
    spreads = [(_logps_in_batches(model, groups, size) - scored_BK).abs() for size in (1, microbatch)]
    for group, spread in zip(groups, max(spreads, key=lambda s: float(s.square().sum())).tolist(), strict=True):
        group["ref_spread"] = spread[: len(group["ref_logps"])]


def _logps_in_batches(model: PreTrainedModel, groups: list[Group], size: int) -> torch.Tensor:
    """(B, K) nats, computed `size` groups at a time."""
    logps, candidates = [], fill_up([group["candidate_ids"] for group in groups])
    for start in range(0, len(groups), size):
        part = groups[start : start + size]
        packed = pack_groups([group["prompt_ids"] for group in part], candidates[start : start + size])
        logps.append(candidate_logps(model, packed.to(model.device)).cpu())
    return torch.cat(logps)


def batch_by_cost(costs: Sequence[float], budget: float) -> Iterator[list[int]]:
    """Batches of indices of similar cost, cheapest first. A batch exceeds the budget only if it is a single index."""
    rows: list[int] = []
    total = 0.0
    for row in sorted(range(len(costs)), key=lambda r: costs[r]):
        if rows and total + costs[row] > budget:
            yield rows
            rows, total = [], 0.0
        rows.append(row)
        total += costs[row]
    if rows:
        yield rows


def _broken_layer(model: PreTrainedModel, prompts: list[list[int]], candidates: list[list[list[int]]]) -> str:
    layer = first_not_finite(model, pack_groups(prompts, candidates).to(model.device))
    return f"the first layer whose output is not finite is {layer}" if layer else "every layer's output is finite"


def _gold_cost(group: Group, draws: Sequence[Sequence[MeanfieldDraw]], vocabulary: int) -> float:
    """Share of the token budget or of the logits budget, whichever is larger."""
    tokens = len(group["prompt_ids"]) + len(group["candidate_ids"][0])
    return max(tokens / BATCH_TOKENS, len(union_positions(draws)) * vocabulary / BATCH_LOGITS)
