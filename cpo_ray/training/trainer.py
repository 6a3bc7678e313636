"""The training stages: Ray Train starts the workers, restarts them from the last checkpoint, and keeps the result."""

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
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cpo_ray.artifacts import Summary
from cpo_ray.cluster.loopback import gloo_environment
from cpo_ray.config import ClusterConfig
from cpo_ray.errors import Preempted, TrainingError
from cpo_ray.training.checkpoint import best_first, take_model
from cpo_ray.training.loop import train_worker
from cpo_ray.training.mailbox import Board, Metrics
from cpo_ray.training.network import nccl_environment
from cpo_ray.training.rendezvous import Rendezvous
from cpo_ray.training.restarts import fit_while_it_gets_on, plain_losses
from cpo_ray.training.storage import storage_place
from cpo_ray.training.task import Task

POLL_INTERVAL_S = 0.5
START_TIMEOUT_S = 60.0  # how long Ray Train waits for its workers' resources before it says so and waits again


def train_model(
    task: Task,
    cluster: ClusterConfig,
    checkpoints: Path,
    out: Path,
    on_step: Callable[[Metrics], None],
    on_notice: Callable[[str], None],
    told_to_end: threading.Event | None = None,
) -> Summary:
    """Train and put the final model, a Hugging Face directory, into `out`.

    checkpoints: this training's own folder; what is there already is continued from. on_step: called in the driver with
    each step's metrics, a step again after a restart, and with `validation` where that was measured. on_notice: called with
    lines for the user. Raises TrainingError where training refuses to go on or fails again and again without a new checkpoint
    (`max_failures`), and Preempted where this process was told to end (SIGTERM) and a checkpoint has been saved. After the
    last step nothing is left to save: then the model is put into `out` all the same, and `told_to_end` is set.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = Board.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined] # lost only with this process's node
    last: Metrics = {}
    told_to_end = told_to_end or threading.Event()

    def hear() -> None:
        if told_to_end.is_set():
            board.want_save.remote()
        news = ray.get(board.take.remote())
        for notice in news.notices:
            on_notice(notice)
        for metrics in news.metrics:
            if "validation" not in metrics:
                last.clear()
                last.update(metrics)
            on_step(metrics)
        board.written.remote()

    with plain_losses(task.stage), _every(POLL_INTERVAL_S, hear), _set_on_sigterm(told_to_end), _plain_interrupt():
        try:
            result = fit_while_it_gets_on(
                lambda: _trainer(task, cluster, checkpoints, board).fit(),
                lambda: ray.get(board.reached.remote()),
                task.training.max_failures,
            )
        except TrainingFailedError as error:
            hear()
            reason = ray.get(board.refused.remote()) or f"{_first_line(error)} (see the run's logs)"
            raise TrainingError(f"training `{task.stage}` failed: {reason}") from error
    hear()
    refusal = ray.get(board.refused.remote())
    if refusal is not None:
        raise TrainingError(f"training `{task.stage}` refuses to go on: {refusal}")
    step = ray.get(board.saved_at.remote())
    if step is not None and step < task.training.steps:
        raise Preempted(f"told to end: saved at step {step}; the same command goes on from there")
    best = task.training.final == "best"
    kept = best_first(result.best_checkpoints) if best else [(result.checkpoint, result.metrics)]
    if result.checkpoint is None or not take_model(kept, out, on_notice):
        raise TrainingError(
            f"training `{task.stage}` ended without a whole checkpoint: the same command makes anew what is missing"
        )
    told = ("loss", "gold_logp", "accuracy", "margin", "gold_drift")
    return {"steps": task.training.steps, **{k: last[k] for k in told if k in last}}


def _trainer(task: Task, cluster: ClusterConfig, checkpoints: Path, board: Any) -> TorchTrainer:
    use_gpu = cluster.gpus_per_worker > 0
    resources = {"CPU": 1.0} | ({"GPU": cluster.gpus_per_worker} if use_gpu else {})
    keep: dict[str, Any] = {"num_to_keep": task.training.keep_checkpoints}
    if task.validation is not None:
        keep |= {"checkpoint_score_attribute": "validation_loss", "checkpoint_score_order": "min"}
    storage, name = storage_place(cluster, checkpoints)
    environment = nccl_environment(os.environ) if use_gpu else {"DS_ACCELERATOR": "cpu"}
    environment |= gloo_environment(ray.util.get_node_ip_address(), os.environ)
    return TorchTrainer(
        train_worker,
        train_loop_config={"task": task, "board": board},
        torch_config=Rendezvous(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=task.training.workers,
            use_gpu=use_gpu,
            resources_per_worker=resources,
            placement_strategy=cluster.placement,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage,
            failure_config=FailureConfig(
                max_failures=task.training.max_failures,
                controller_failure_limit=math.ceil(
                    cluster.wait_s / START_TIMEOUT_S
                ),  # how often it waits for resources
            ),
            checkpoint_config=CheckpointConfig(**keep),
            worker_runtime_env={"env_vars": environment},
        ),
    )


@contextlib.contextmanager
def _every(interval: float, action: Callable[[], None]) -> Iterator[None]:
    """Call `action` every `interval` seconds in a thread. An error in it interrupts the block and is raised in its place."""
    over = threading.Event()

    def repeat() -> None:
        try:
            while not over.wait(interval):
                action()
        except BaseException:
            _thread.interrupt_main()
            raise

    with ThreadPoolExecutor(1) as pool:
        repeating = pool.submit(repeat)
        try:
            yield
        finally:
            over.set()
            repeating.result()


@contextlib.contextmanager
def _set_on_sigterm(asked: threading.Event) -> Iterator[None]:
    """SIGTERM (a preempted machine, a stopped job) asks to end; a second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    before = signal.getsignal(signal.SIGTERM)

    def ask(*_: object) -> None:
        signal.signal(signal.SIGTERM, before)
        asked.set()

    signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _plain_interrupt() -> Iterator[None]:
    """Let Ctrl-C be Ctrl-C: Ray Train puts in a handler of its own that ends the process with status 0, and leaves it."""
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
