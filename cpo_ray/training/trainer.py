"""Train one model: Ray Train starts the workers and restarts them from the last checkpoint; the driver takes the result."""

import _thread
import contextlib
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
from ray.train import CheckpointConfig, FailureConfig, Result, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cpo_ray.artifacts import Summary
from cpo_ray.cluster.loopback import gloo_environment
from cpo_ray.config import ClusterConfig
from cpo_ray.errors import Preempted, TrainingError
from cpo_ray.training.adapter_merging import merge_adapter
from cpo_ray.training.checkpoint import copy_first_intact_model, sort_by_validation_loss
from cpo_ray.training.mailbox import Mailbox, Metrics
from cpo_ray.training.network import nccl_environment
from cpo_ray.training.rendezvous import Rendezvous
from cpo_ray.training.restarts import fit_with_restarts, lost_actors_as_cluster_error
from cpo_ray.training.storage import storage_location
from cpo_ray.training.task import Task
from cpo_ray.training.worker import train_worker

POLL_INTERVAL_S = 0.5
SUMMARY_METRICS = ("loss", "gold_logp", "accuracy", "margin", "gold_drift")  # of the last step
VALIDATION_METRICS = ("validation_loss", "validation_nll")  # of the checkpoint that is kept
ROUNDED_AWAY = 0.1  # share of an adapter's change that rounding may take from merged weights without a warning
START_TIMEOUT_S = 60.0  # how long Ray Train waits for its workers' resources before it warns and waits again


def train_model(
    task: Task,
    cluster: ClusterConfig,
    checkpoints: Path,
    out: Path,
    on_metrics: Callable[[Metrics], None],
    on_notice: Callable[[str], None],
    stop_requested: threading.Event | None = None,
) -> Summary:
    """Train, and write the final model, a Hugging Face directory, into `out`. Returns steps, last metrics, validation loss.

    checkpoints: the folder of this training; it resumes from what is there. on_metrics: called in the driver with the metrics
    of each step, again for steps that a restart repeats, and with `validation` when that was measured. on_notice: called with
    lines for the user. Raises TrainingError if training refuses to continue, or fails repeatedly without a new checkpoint
    (`max_failures`), and Preempted if this process was stopped (SIGTERM) and a checkpoint has been saved. A SIGTERM after the
    last step, when nothing is left to save, sets `stop_requested` and the model is written as usual.
    """
    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # On the node of the driver, so that it is lost only together with the driver.
    mailbox = Mailbox.options(scheduling_strategy=this_node).remote()  # type: ignore[attr-defined]
    last: Metrics = {}
    stop_requested = stop_requested or threading.Event()

    def forward_messages() -> None:
        if stop_requested.is_set():
            mailbox.request_save.remote()
        messages = ray.get(mailbox.take_messages.remote())
        for notice in messages.notices:
            on_notice(notice)
        for metrics in messages.metrics:
            if "validation" not in metrics:
                last.clear()
                last.update(metrics)
            on_metrics(metrics)
        mailbox.mark_logged.remote()

    with (
        lost_actors_as_cluster_error(task.stage),
        _called_every(POLL_INTERVAL_S, forward_messages),
        _set_on_sigterm(stop_requested),
        _keyboard_interrupt_on_sigint(),
    ):
        try:
            result = fit_with_restarts(
                lambda: _trainer(task, cluster, checkpoints, mailbox).fit(),
                lambda: ray.get(mailbox.last_checkpoint.remote()),
                task.training.max_failures,
            )
        except TrainingFailedError as error:
            forward_messages()
            reason = ray.get(mailbox.refusal_reason.remote()) or f"{_first_line(error)} (see the run's logs)"
            raise TrainingError(f"training `{task.stage}` failed: {reason}") from error
    forward_messages()
    refusal = ray.get(mailbox.refusal_reason.remote())
    if refusal is not None:
        raise TrainingError(f"training `{task.stage}` refuses to continue: {refusal}")
    step = ray.get(mailbox.requested_save_step.remote())
    if step is not None and step < task.training.steps:
        raise Preempted(f"stopped by SIGTERM: saved at step {step}. Run the same command again to continue")
    copied = _copy_result(result, task, out, on_notice)
    summary = {"steps": task.training.steps, **{name: last[name] for name in SUMMARY_METRICS if name in last}}
    summary |= {name: copied[name] for name in VALIDATION_METRICS if name in copied}
    if task.adapter is not None and task.adapter.export == "merged":
        summary |= _merge(task, out)
    return summary


def _merge(task: Task, out: Path) -> Summary:
    """Add merged weights to the directory of an adapter. Warns if rounding took away a noticeable share of what was learned."""
    lost = merge_adapter(out, out)
    summary: Summary = {"rounded_away": lost}
    if lost > ROUNDED_AWAY:
        warning = (
            f"rounding the merged weights to {task.training.precision} took away {lost:.0%} of the adapter's change, so the "
            "merged model is not the trained one: keep the adapter (adapter.export: adapter), or train at a higher rate"
        )
        summary["warnings"] = [warning]
    return summary


def _copy_result(result: Result, task: Task, out: Path, on_notice: Callable[[str], None]) -> dict[str, Any]:
    """Copy the last or the best model, as configured, into `out`. Returns the metrics that its checkpoint was reported with.

    Raises TrainingError if no checkpoint is intact.
    """
    stored: list[Any] = [(result.checkpoint, result.metrics)]
    if task.training.final == "best":
        stored = sort_by_validation_loss(result.best_checkpoints)
    copied = None if result.checkpoint is None else copy_first_intact_model(stored, out, on_notice)
    if copied is None:
        raise TrainingError(
            f"training `{task.stage}` ended without an intact checkpoint. Run the same command again to train what is missing"
        )
    return copied


def _trainer(task: Task, cluster: ClusterConfig, checkpoints: Path, mailbox: Any) -> TorchTrainer:
    use_gpu = cluster.worker_gpus > 0
    resources = {"CPU": 1.0} | ({"GPU": cluster.worker_gpus} if use_gpu else {})
    keep: dict[str, Any] = {"num_to_keep": task.training.keep_checkpoints}
    if task.validation is not None:
        keep |= {"checkpoint_score_attribute": "validation_loss", "checkpoint_score_order": "min"}
    storage, name = storage_location(cluster, checkpoints)
    environment = nccl_environment(os.environ) if cluster.uses_cuda else {"DS_ACCELERATOR": "cpu"}
    environment |= gloo_environment(ray.util.get_node_ip_address(), os.environ)
    return TorchTrainer(
        train_worker,
        train_loop_config={"task": task, "mailbox": mailbox},
        torch_config=Rendezvous(backend="nccl" if cluster.uses_cuda else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=task.training.worker_count,
            use_gpu=use_gpu,
            resources_per_worker=resources,
            placement_strategy=cluster.placement,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage,
            failure_config=FailureConfig(
                max_failures=task.training.max_failures,
                # How often it waits for resources.
                controller_failure_limit=math.ceil(cluster.wait_s / START_TIMEOUT_S),
            ),
            checkpoint_config=CheckpointConfig(**keep),
            worker_runtime_env={"env_vars": environment},
        ),
    )


@contextlib.contextmanager
def _called_every(interval: float, action: Callable[[], None]) -> Iterator[None]:
    """Call `action` every `interval` seconds in a thread. An error in it interrupts the block, which then raises that error."""
    done = threading.Event()

    def repeat() -> None:
        try:
            while not done.wait(interval):
                action()
        except BaseException:
            _thread.interrupt_main()
            raise

    with ThreadPoolExecutor(1) as pool:
        repeating = pool.submit(repeat)
        try:
            yield
        finally:
            done.set()
            repeating.result()


@contextlib.contextmanager
def _set_on_sigterm(stop_requested: threading.Event) -> Iterator[None]:
    """SIGTERM (a preempted machine, a stopped job) sets the event; a second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread can handle signals
        yield
        return
    before = signal.getsignal(signal.SIGTERM)

    def on_sigterm(*_: object) -> None:
        signal.signal(signal.SIGTERM, before)
        stop_requested.set()

    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _keyboard_interrupt_on_sigint() -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C. Ray Train installs a handler that exits with status 0, and does not restore ours."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, before)


def _first_line(error: TrainingFailedError) -> str:
    failures = getattr(error, "worker_failures", {})
    reasons = [str(failure).strip().splitlines()[-1] for failure in failures.values() if str(failure).strip()]
    return reasons[0] if reasons else str(error).strip().splitlines()[0]
