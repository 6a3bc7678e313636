"""What Ray Train runs on every worker: resume, take the steps, report to the driver, and save checkpoints."""

import time
from typing import Any

import ray
import torch
import torch.distributed as dist

from cpo_ray.config import TrainingConfig
from cpo_ray.training.checkpoint import clear_scratch, find_checkpoint, load_checkpoint, save_checkpoint
from cpo_ray.training.deepspeed_engine import export_policy, start_engine
from cpo_ray.training.loader import open_loader
from cpo_ray.training.loop import Step, training_steps
from cpo_ray.training.memory import oom_advice
from cpo_ray.training.network import warn_about_slow_network
from cpo_ray.training.preemption import PreemptionWatch
from cpo_ray.training.profiling import profiling
from cpo_ray.training.rows import TrainingRows
from cpo_ray.training.signals import Signals
from cpo_ray.training.snapshots import publish_snapshot, restore_snapshots
from cpo_ray.training.storage import disk_full_advice
from cpo_ray.training.task import Refusal, Task
from cpo_ray.training.validation import validate

LOGGED_POLL_S = 0.1


def train_worker(settings: dict[str, Any]) -> None:
    """Ray Train calls this on every worker. `settings`: the `task` and the `mailbox`."""
    task: Task = settings["task"]
    mailbox = settings["mailbox"]
    clear_scratch()
    if ray.get(mailbox.refusal_reason.remote()) is not None:
        return  # a restart after a refusal would only repeat it
    torch.set_num_threads(task.threads)
    try:
        train(task, mailbox)
    except Refusal as refusal:  # raised on every worker, so all of them end here
        if dist.get_rank() == 0:
            ray.get(mailbox.refuse.remote(str(refusal)))
    except (RuntimeError, OSError) as error:
        advice = oom_advice(error, task) or disk_full_advice(error)
        if advice is not None:  # on this worker only: it must fail, because the others wait for it in a collective
            ray.get(mailbox.refuse.remote(advice))
        raise


def train(task: Task, mailbox: Any) -> None:
    """From the newest intact checkpoint to the last step, or to the step after which the driver requested a checkpoint."""

    def notify(line: str) -> None:
        if dist.get_rank() == 0:
            ray.get(mailbox.post_notice.remote(line))

    validation = TrainingRows.read(task.validation, task, task.training.validation_rows) if task.validation else None
    saved = find_checkpoint(notify)
    engine = start_engine(
        task, notify, universal=saved is not None and saved.needs_resharding(task.training.zero_stage)
    )
    if saved is not None:
        load_checkpoint(engine, saved)
    finished = saved.finished if saved else 0
    ray.get(mailbox.report_start.remote(finished, dist.get_rank()))
    if task.cuda:
        warn_about_slow_network(notify)
    preemption, save_requested = PreemptionWatch(), mailbox.save_requested.remote()

    def poll_signals() -> Signals:
        return Signals(save=ray.get(save_requested), check_preemption=preemption.is_due())

    restore_snapshots(engine, task, finished)
    with (
        open_loader(task, finished) as loader,
        profiling(task.profile, task.training.profile_steps, dist.get_rank(), notify) as step_done,
    ):
        for step in training_steps(engine, loader, task, finished, poll_signals):
            if dist.get_rank() == 0:
                metrics = {"stage": task.stage, "step": step.number, **step.metrics}
                save_requested = mailbox.post_metrics.remote(metrics)  # the answer is read at the next step
            preempted = preemption.count_new() if step.signals.check_preemption else 0
            if step.signals.save or preempted or checkpoint_due(step.number, task.training):
                checkpoint(engine, validation, task, step, mailbox, preempted)
            publish_snapshot(engine, task, step.number)
            step_done()
            if step.signals.save:
                return


def checkpoint_due(step: int, training: TrainingConfig) -> bool:
    """Whether the configuration asks for a checkpoint after this step."""
    return step == training.steps or step % training.checkpoint_every == 0


def checkpoint(
    engine: Any, validation: TrainingRows | None, task: Task, step: Step, mailbox: Any, preempted: int
) -> None:
    """Measure the validation loss, save, and report to the mailbox. preempted: machines of workers that will go away soon."""
    last, first_worker = step.number == task.training.steps, dist.get_rank() == 0
    report: dict[str, Any] = {"finished": step.number}
    if validation is not None:
        measured = validate(engine, validation, task)
        report["validation_loss"] = measured.get("joint_loss", measured["loss"])
        report["validation_nll"] = -measured["gold_logp"] / validation.mean_gold_tokens
        if first_worker:
            mailbox.post_metrics.remote({"stage": task.stage, "step": step.number, "validation": measured})

    def wait_until_logged() -> None:
        while not ray.get(mailbox.is_logged.remote(step.number)):
            time.sleep(LOGGED_POLL_S)

    export = last or task.training.final == "best"
    save_checkpoint(
        engine,
        report,
        wait=last or step.signals.save or preempted > 0,
        refuse=lambda reason: ray.get(mailbox.refuse.remote(reason)),
        wait_until_logged=wait_until_logged,
        export=(lambda folder: export_policy(engine, task, folder)) if export else None,
    )
    if not first_worker:
        return
    mailbox.report_checkpoint.remote(step.number)
    if step.signals.save:
        ray.get(mailbox.report_requested_save.remote(step.number))
    if preempted:
        notice = f"{preempted} of the workers' machines will be preempted soon: saved at step {step.number}, training continues"
        ray.get(mailbox.post_notice.remote(notice))
