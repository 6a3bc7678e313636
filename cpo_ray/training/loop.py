"""What one worker does: the training loop, readable in one screen, and the checks around a step."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
import torch
import torch.distributed as dist

from cpo_ray.cluster.accelerators import peak_flops
from cpo_ray.config import ObjectiveConfig, TrainingConfig
from cpo_ray.training.batch_order import deal
from cpo_ray.training.checkpoint import clear_scratch, find_checkpoint, load_checkpoint, save_checkpoint
from cpo_ray.training.deepspeed_engine import export_final, optimizer_step, set_learning_rate, start_engine
from cpo_ray.training.layout import describe_row
from cpo_ray.training.loader import Source, open_source
from cpo_ray.training.memory import out_of_memory, peak_memory_gib
from cpo_ray.training.microbatch import microbatch_loss
from cpo_ray.training.network import warn_of_slow_network
from cpo_ray.training.preemption import Departures
from cpo_ray.training.profiling import profiling
from cpo_ray.training.schedule import learning_rate
from cpo_ray.training.snapshots import publish, return_to
from cpo_ray.training.step_metrics import Tally, step_metrics
from cpo_ray.training.storage import no_room
from cpo_ray.training.task import Refusal, Rows, Task
from cpo_ray.training.validation import validate

# How far a continuation's log-prob (nats) may be from the reference's own, which the same code computed in other batches.
# In bf16 hidden states are rounded to 2^-8 of themselves. Over tens of tokens that adds up to hundredths of a nat, and the
# mean over a batch evens out more of it than the bound below supposes.
SCORING_NOISE = {"fp32": 1e-5, "bf16": 0.03}

ASK_EVERY_S = 0.1  # whether the driver has written down what it must know before a checkpoint counts


@dataclass(frozen=True)
class Step:
    """An optimizer step that is done."""

    number: int  # from 1
    metrics: dict[str, Any]
    save: bool  # a checkpoint is wanted now, and then the end: the driver's machine may go away
    ask: bool  # it is time to ask whether a worker's machine is about to go away


def train_worker(settings: dict[str, Any]) -> None:
    """Ray Train calls this on every worker. `settings` holds the `task` and the `board` where notices are pinned."""
    task: Task = settings["task"]
    board = settings["board"]
    clear_scratch()
    if ray.get(board.refused.remote()) is not None:
        return  # started again after a refusal, which would only repeat itself
    torch.set_num_threads(task.threads)
    try:
        train(task, board)
    except Refusal as refusal:  # every worker's: all of them end here
        if dist.get_rank() == 0:
            ray.get(board.refuse.remote(str(refusal)))
    except (RuntimeError, OSError) as error:
        advice = out_of_memory(error, task) or no_room(error)
        if advice is not None:  # this worker's alone: the others wait for it, so it must fall for them to be ended
            ray.get(board.refuse.remote(advice))
        raise


def train(task: Task, board: Any) -> None:
    """From the newest whole checkpoint to the last step, or to the step at which the driver was told to end."""

    def tell(line: str) -> None:
        if dist.get_rank() == 0:
            ray.get(board.tell.remote(line))

    held_out = Rows.read(task.validation, task, task.training.validation_rows) if task.validation else None
    saved = find_checkpoint(tell)
    engine = start_engine(task, tell, universal=saved is not None and saved.reshards(task.training.zero_stage))
    if saved is not None:
        load_checkpoint(engine, saved)
    finished = saved.finished if saved else 0
    ray.get(board.begin.remote(finished, dist.get_rank()))
    if task.cuda:
        warn_of_slow_network(tell)
    letter, departures = board.save_wanted.remote(), Departures()

    def save_wanted() -> bool:
        return bool(ray.get(letter))

    return_to(engine, task, finished)
    with (
        open_source(task, finished) as source,
        profiling(task.profile, task.training.profile_steps, dist.get_rank(), tell) as step_is_over,
    ):
        for step in training_steps(engine, source, task, finished, save_wanted, departures.due):
            if dist.get_rank() == 0:
                letter = board.record.remote({"stage": task.stage, "step": step.number, **step.metrics})
            leaving = departures.ask() if step.ask else 0
            if step.save or leaving or checkpoint_due(step.number, task.training):
                checkpoint(engine, held_out, task, step, board, leaving)
            publish(engine, task, step.number)
            step_is_over()
            if step.save:
                return


def checkpoint_due(step: int, training: TrainingConfig) -> bool:
    """Whether a checkpoint follows this step, whatever happens."""
    return step == training.steps or step % training.checkpoint_every == 0


def checkpoint(engine: Any, held_out: Rows | None, task: Task, step: Step, board: Any, leaving: int) -> None:
    """Measure the validation loss, save, and tell the board. leaving: how many of the workers' machines will soon."""
    last, first_worker = step.number == task.training.steps, dist.get_rank() == 0
    report: dict[str, Any] = {"finished": step.number}
    if held_out is not None:
        validation = validate(engine, held_out, task)
        report["validation_loss"] = validation["loss"]
        if first_worker:
            board.record.remote({"stage": task.stage, "step": step.number, "validation": validation})

    def until_known() -> None:
        while not ray.get(board.knows.remote(step.number)):
            time.sleep(ASK_EVERY_S)

    export = last or task.training.final == "best"
    save_checkpoint(
        engine,
        report,
        wait=last or step.save or leaving > 0,
        refuse=lambda reason: ray.get(board.refuse.remote(reason)),
        until_known=until_known,
        export=(lambda folder: export_final(engine, task.model, folder)) if export else None,
    )
    if first_worker:
        board.reach.remote(step.number)
    if step.save and first_worker:
        ray.get(board.saved.remote(step.number))
    if leaving and first_worker:
        notice = f"{leaving} of the workers' machines will go away soon: saved at step {step.number}, going on"
        ray.get(board.tell.remote(notice))


def training_steps(
    engine: Any,
    source: Source,
    task: Task,
    finished: int,
    save_wanted: Callable[[], bool] = lambda: False,
    asking_due: Callable[[], bool] = lambda: False,
) -> Iterator[Step]:
    """Take the optimizer steps after `finished`. save_wanted, asking_due: called once a step, on rank 0, for all."""
    config, workers = task.training, dist.get_world_size()
    microbatches = config.prompts_per_step // (workers * config.prompts_per_microbatch)
    shape, peak = engine.module.shape, peak_flops(config.precision) if task.cuda else None
    for step in range(finished, config.steps):
        started = time.perf_counter()
        given = source.at(step)
        rows, batch, waited = given.rows, given.numbers, time.perf_counter() - started
        costs = [shape.forward_flops(rows.sizes[r]) for r in batch]
        share = deal(batch, costs, workers, microbatches)[dist.get_rank()]
        part = workers * microbatches / sum(len(rows.candidates[r][0]) for r in batch)
        tally = Tally(engine.device, given.kinds)
        for number, microbatch in enumerate(share, 1):
            engine.backward(microbatch_loss(engine, rows, microbatch, task, step, part, tally))
            if number == microbatches:
                tally.add(broken_gradients=engine.module.broken_gradients)
                if dist.get_rank() == 0:
                    tally.add(save=save_wanted(), ask=asking_due())
                sums = tally.over_workers()
                check_step(sums, tally, rows, task, step, batch, lambda row: describe_row(engine, rows, row))  # noqa: B023
                set_learning_rate(engine, learning_rate(config, step))
            norm = optimizer_step(engine)
        seconds = time.perf_counter() - started
        age = task.stream.shelf.age_at(step) if task.stream is not None else 0
        metrics = step_metrics(sums, task.objective, age) | {
            "learning_rate": learning_rate(config, step),
            "grad_norm": norm,
            "seconds": seconds,
            "data_seconds": waited,
            "tokens_per_second": sums["tokens"] / seconds,
            "memory_gib": peak_memory_gib(engine.device),
        }
        if task.stream is not None:
            metrics["sampled_from_step"] = age
        if peak is not None:
            metrics["mfu"] = 3 * sum(costs) / (seconds * workers * peak)
        if step == 0 and task.objective is not None:
            metrics["expected_loss"] = sums["expected"] / len(batch)
        yield Step(step + 1, metrics, bool(sums["save"]), bool(sums["ask"]))


def initial_loss_tolerance(precision: str, objective: ObjectiveConfig, candidates: int) -> float:
    """How far the first CPO loss may be from log K (or log K!): what noise in the scores can do to it at the most.

    Each softmax moves by at most twice what its scores move by; the ranked loss has K - 1 of them.
    """
    softmaxes = candidates - 1 if objective.ranked else 1
    return 1e-3 + 2 * softmaxes * objective.beta * SCORING_NOISE[precision]


def check_step(
    sums: dict[str, float],
    mine: Tally,
    rows: Rows,
    task: Task,
    step: int,
    batch: list[int],
    describe: Callable[[int], str] | None = None,
) -> None:
    """Refuse, before the optimizer moves, where a number is not finite or the policy does not start at the reference.

    Every worker sees the same sums, so all refuse or none.
    """
    if sums["broken"]:
        gathered: list[list[str]] = [[] for _ in range(dist.get_world_size())]
        describe = describe or rows.ids.__getitem__
        dist.all_gather_object(gathered, [describe(row) for row in mine.broken_rows()])
        names = [name for part in gathered for name in part]
        raise Refusal(f"step {step + 1}: the loss is not finite for rows {', '.join(names[:10])}; no step was taken")
    if sums["broken_gradients"]:
        names = [rows.ids[row] for row in batch]
        raise Refusal(
            f"step {step + 1}: a gradient is not finite, though every loss is; no step was taken. The batch's rows: "
            f"{', '.join(names[:10])}{' ...' if len(names) > 10 else ''}. Try training.precision fp32 or a lower learning rate."
        )
    if task.objective is None or step > 0:
        return
    seen, expected = sums["loss"] / len(batch), sums["expected"] / len(batch)
    tolerance = initial_loss_tolerance(task.training.precision, task.objective, rows.ranks.shape[1])
    if not math.isclose(seen, expected, rel_tol=0, abs_tol=tolerance):
        raise Refusal(
            f"the first CPO loss is {seen:.4f} but must be {expected:.4f} (tolerance {tolerance:g}): the policy is not "
            "the reference that scored the groups. Were they made with another model, tokenizer, template or dtype? "
            "Make the groups again from this reference."
        )
