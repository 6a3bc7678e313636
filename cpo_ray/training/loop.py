"""What one worker does: the training loop, readable in one screen, and the checks around a step."""

import math
import time
from collections.abc import Iterator
from typing import Any

import ray
import torch
import torch.distributed as dist
from torch import Tensor

from cpo_ray.objective.losses import cpo_loss, mle_loss
from cpo_ray.objective.packing import pack_groups
from cpo_ray.training.batches import Batches, deal
from cpo_ray.training.checkpoint import load_checkpoint, save_checkpoint
from cpo_ray.training.engine import export_final, optimizer_step, set_learning_rate, start_engine
from cpo_ray.training.schedule import learning_rate
from cpo_ray.training.tally import Tally
from cpo_ray.training.task import Rows, Task

# How far the first CPO loss may be from log K (or log K!). In float32 the reference was scored by the same code in other
# batches, which moves a continuation's log-prob by about 1e-5. In bf16 every token's log-prob carries about 2^-8 of
# relative rounding, so sums over tens of tokens differ by tenths of a nat, times beta, between two packings.
INITIAL_LOSS_TOLERANCE = {"fp32": 1e-3, "bf16": 0.5}


class Refusal(Exception):  # noqa: N818 - it says no, it is not a fault
    """Every worker refuses to go on, for the same reason: not a failure to restart from."""


def train_worker(settings: dict[str, Any]) -> None:
    """Ray Train calls this on every worker. `settings` holds the `task` and the `board` that hears of each step."""
    task: Task = settings["task"]
    board = settings["board"]
    torch.set_num_threads(task.threads)
    rows = Rows.read(task)
    engine = start_engine(task)
    try:
        for step, metrics in training_steps(engine, rows, task, load_checkpoint(engine)):
            if dist.get_rank() == 0:
                board.record.remote({"stage": task.stage, "step": step, **metrics})
            if step == task.training.steps:
                save_checkpoint(engine, step, export=lambda folder: export_final(engine, task.model, folder))
            elif step % task.training.checkpoint_every == 0:
                save_checkpoint(engine, step)
    except Refusal as refusal:
        if dist.get_rank() == 0:
            ray.get(board.refuse.remote(str(refusal)))


def training_steps(engine: Any, rows: Rows, task: Task, finished: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (steps done, metrics) after each optimizer step."""
    config = task.training
    batches = Batches(len(rows.ids), config.prompts_per_step, task.seed)
    microbatches = config.prompts_per_step // (config.workers * config.prompts_per_microbatch)
    for step in range(finished, config.steps):
        started = time.perf_counter()
        batch = batches.at(step)
        share = deal(batch, [rows.cost(r) for r in batch], config.workers, microbatches)[dist.get_rank()]
        batch_tokens = sum(len(rows.candidates[r][0]) for r in batch)
        tally = Tally(engine.device)
        for number, microbatch in enumerate(share):
            packed = pack_groups([rows.prompts[r] for r in microbatch], [rows.candidates[r] for r in microbatch])
            policy_BK = engine(packed.to(engine.device))
            loss = microbatch_loss(policy_BK, rows, microbatch, task, batch_tokens, microbatches, tally)
            tally.tokens += packed.tokens
            engine.backward(loss)
            if number == microbatches - 1:
                totals = tally.over_workers()
                check_step(totals, tally, rows, task, step, batch)
                set_learning_rate(engine, learning_rate(config, step))
            norm = optimizer_step(engine)
        seconds = time.perf_counter() - started
        facts = {"learning_rate": learning_rate(config, step), "grad_norm": norm, "seconds": seconds}
        if step == 0 and task.objective is not None:
            facts["expected_loss"] = totals.sums["expected"] / len(batch)
        yield step + 1, totals.metrics(task) | facts | {"tokens_per_second": totals.tokens / seconds}


def microbatch_loss(
    policy_BK: Tensor,
    rows: Rows,
    microbatch: list[int],
    task: Task,
    batch_tokens: int,
    microbatches: int,
    tally: Tally,
) -> Tensor:
    """The scalar to differentiate. DeepSpeed averages it over microbatches and workers."""
    share_of_batch = task.training.workers * microbatches
    nll = mle_loss(policy_BK[:, 0], batch_tokens) * share_of_batch
    if task.objective is None:
        golds = sum(len(rows.candidates[r][0]) for r in microbatch)
        tally.add_mle(policy_BK[:, 0].detach(), golds, microbatch)
        return nll
    ref_BK = torch.from_numpy(rows.ref_logps[microbatch]).to(policy_BK)  # type: ignore[index]
    valid_BK = torch.tensor(
        [[k == 0 or c != group[0] for k, c in enumerate(group)] for group in (rows.candidates[r] for r in microbatch)],
        device=policy_BK.device,
    )
    ranks_BK = torch.from_numpy(rows.ranks[microbatch]).to(policy_BK.device) if task.objective.ranked else None  # type: ignore[index]
    loss_B = cpo_loss(policy_BK, ref_BK, task.objective.beta, ranks_BK, valid_BK)
    kinds = [rows.kinds[r] for r in microbatch]
    tally.add_cpo(loss_B.detach(), policy_BK.detach(), ref_BK, valid_BK, kinds, microbatch, task.objective)
    loss = loss_B.mean()
    return loss + task.objective.mle_weight * nll if task.objective.mle_weight else loss


def check_step(totals: Tally, mine: Tally, rows: Rows, task: Task, step: int, batch: list[int]) -> None:
    """Refuse, before the optimizer moves, where a number is not finite or the policy does not start at the reference.

    Every worker sees the same totals, so all refuse or none.
    """
    if totals.sums["broken"]:
        gathered: list[list[int]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(gathered, mine.broken_rows)
        names = [rows.ids[row] for part in gathered for row in part]
        raise Refusal(f"step {step + 1}: the loss is not finite for rows {', '.join(names[:10])}; no step was taken")
    if task.objective is None or step > 0:
        return
    seen, expected = totals.sums["loss"] / len(batch), totals.sums["expected"] / len(batch)
    tolerance = INITIAL_LOSS_TOLERANCE[task.training.precision]
    if not math.isclose(seen, expected, rel_tol=0, abs_tol=tolerance):
        raise Refusal(
            f"the first CPO loss is {seen:.4f} but must be {expected:.4f} (tolerance {tolerance:g}): the policy is not "
            "the reference that scored the groups. Were they made with another model, tokenizer, template or dtype? "
            "Make the groups again from this reference."
        )
