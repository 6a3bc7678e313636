"""The training loop of one worker: from a batch of rows to the optimizer step. `microbatch.py` computes the loss."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from cpo_ray.cluster.accelerators import peak_flops
from cpo_ray.training.batch_order import split_batch
from cpo_ray.training.deepspeed_engine import optimizer_step, set_learning_rate
from cpo_ray.training.layout import describe_row
from cpo_ray.training.loader import Batch, BatchLoader
from cpo_ray.training.memory import peak_memory_gib
from cpo_ray.training.microbatch import microbatch_loss
from cpo_ray.training.schedule import learning_rate
from cpo_ray.training.signals import Signals
from cpo_ray.training.step_checks import FIRST_STEP_SUMS, check_step, first_step
from cpo_ray.training.step_metrics import StepSums, step_metrics
from cpo_ray.training.task import Task
from cpo_ray.training.validation import measure


@dataclass(frozen=True)
class Step:
    """A finished optimizer step."""

    number: int  # from 1
    metrics: dict[str, Any]
    signals: Signals


def training_steps(
    engine: Any,
    loader: BatchLoader,
    task: Task,
    finished: int,
    poll_signals: Callable[[], Signals] = Signals,
) -> Iterator[Step]:
    """Take the optimizer steps after `finished`, one per iteration. poll_signals: called once per step, on rank 0, for all."""
    peak = peak_flops(task.training.precision) if task.cuda else None
    for step in range(finished, task.training.steps):
        started = time.perf_counter()
        batch = loader.load(step)
        data_seconds = time.perf_counter() - started
        costs = [engine.module.shape.forward_flops(batch.rows.sizes[row]) for row in batch.numbers]

        without_dropout = prepare_dropout(engine, batch, task, step)
        sums = accumulate_gradients(engine, batch, costs, task, step)
        totals = sums.all_reduce()
        signals = (poll_signals() if dist.get_rank() == 0 else Signals()).broadcast(engine.device)
        check_step(totals | without_dropout, sums, batch, task, step, partial(describe_row, engine, batch.rows))
        rate = learning_rate(task.training, step)
        set_learning_rate(engine, rate)
        grad_norm = optimizer_step(engine)

        seconds = time.perf_counter() - started
        sampled_from = task.stream.snapshots.snapshot_step(step) if task.stream is not None else 0
        moves_reference = task.stream is not None and task.stream.snapshots.moves_reference
        metrics = step_metrics(totals, task.objective, 0 if moves_reference else sampled_from) | {
            "learning_rate": rate,
            "grad_norm": grad_norm,
            "seconds": seconds,
            "data_seconds": data_seconds,
            "tokens_per_second": totals["tokens"] / seconds,
            "memory_gib": peak_memory_gib(engine.device),
        }
        if task.stream is not None:
            metrics["sampled_from_step"] = sampled_from
        if moves_reference:
            metrics["reference_step"] = sampled_from
        if peak is not None:
            # Frozen weights need no gradient, which is half of a backward pass.
            passes = 3 if task.adapter is None else 2
            metrics["mfu"] = passes * sum(costs) / (seconds * dist.get_world_size() * peak)
        if task.starts_at_reference(step):
            metrics |= first_step(totals | without_dropout, batch, task).metrics()
        yield Step(step + 1, metrics, signals)


def prepare_dropout(engine: Any, batch: Batch, task: Task, step: int) -> dict[str, float]:
    """Seed the dropout of a step, if there is any, so that training that resumes draws the same.

    Returns the sums that are checked if the policy is the reference, measured without dropout: with it, it is not.
    Otherwise nothing.
    """
    if task.training.dropout == "none" and (task.adapter is None or not task.adapter.dropout):
        return {}
    measured = measure(engine, batch.rows, batch.numbers, task) if task.starts_at_reference(step) else {}
    entropy = [task.seed, task.first_batch + step, dist.get_rank()]
    torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
    return {name: amount for name, amount in measured.items() if name in FIRST_STEP_SUMS}


def accumulate_gradients(engine: Any, batch: Batch, costs: list[float], task: Task, step: int) -> StepSums:
    """Forward and backward passes over this worker's microbatches of a step. Returns its sums.

    costs: estimated FLOPs of each row of the batch, by which the rows are balanced over workers and microbatches.
    """
    workers, rows = dist.get_world_size(), batch.rows
    count = task.training.prompts_per_step // (workers * task.training.prompts_per_microbatch)
    microbatches = split_batch(batch.numbers, costs, workers, count)[dist.get_rank()]
    # DeepSpeed averages over workers and microbatches: with this factor, the mean is per gold token of the global batch.
    per_token = workers * count / sum(len(rows.candidates[row][0]) for row in batch.numbers)
    sums = StepSums(engine.device, batch.kinds)
    for number, microbatch in enumerate(microbatches, 1):
        engine.backward(microbatch_loss(engine, rows, microbatch, task, step, per_token, sums))
        if number < count:
            engine.step()  # DeepSpeed counts the microbatches, and updates only after the last one
    sums.add(nonfinite_gradients=engine.module.nonfinite_gradients)
    return sums
