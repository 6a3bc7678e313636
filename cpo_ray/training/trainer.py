"""The training stages: Ray Train starts the workers, restarts them from the last checkpoint, and keeps the result."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from cpo_ray.artifacts import Summary
from cpo_ray.config import ClusterConfig
from cpo_ray.errors import TrainingError
from cpo_ray.training.loop import train_worker
from cpo_ray.training.models import copy_model
from cpo_ray.training.task import Task

POLL_INTERVAL_S = 0.5

Metrics = dict[str, Any]


@ray.remote(num_cpus=0)
class Board:
    """Where rank 0 pins each step's metrics, and where the driver reads them."""

    def __init__(self) -> None:
        self.news: list[Metrics] = []
        self.refusal: str | None = None

    def record(self, metrics: Metrics) -> None:
        """One step's metrics."""
        self.news.append(metrics)

    def refuse(self, reason: str) -> None:
        """Training must not go on."""
        self.refusal = reason

    def take(self) -> list[Metrics]:
        """What is new since the last call."""
        news, self.news = self.news, []
        return news

    def refused(self) -> str | None:
        """Why training refused to go on, if it did."""
        return self.refusal


def train_model(
    task: Task, cluster: ClusterConfig, checkpoints: Path, out: Path, on_step: Callable[[Metrics], None]
) -> Summary:
    """Train and put the final model, a Hugging Face directory, into `out`.

    checkpoints: this training's own folder; what is there already is continued from. on_step: called in the driver with
    each step's metrics, a step again after a restart. Raises TrainingError where training refuses to go on or has
    failed more often than `max_failures`.
    """
    board = Board.remote()  # type: ignore[attr-defined]
    use_gpu = cluster.gpus_per_worker > 0
    resources = {"CPU": 1.0} | ({"GPU": cluster.gpus_per_worker} if use_gpu else {})
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"task": task, "board": board},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=task.training.workers, use_gpu=use_gpu, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=checkpoints.name,
            storage_path=str(checkpoints.parent.resolve()),
            failure_config=FailureConfig(max_failures=task.training.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            worker_runtime_env={"env_vars": {} if use_gpu else {"DS_ACCELERATOR": "cpu"}},
        ),
    )
    last: Metrics = {}

    def hear() -> None:
        for metrics in ray.get(board.take.remote()):
            last.update(metrics)
            on_step(metrics)

    with _every(POLL_INTERVAL_S, hear), _plain_interrupt():
        try:
            result = trainer.fit()
        except TrainingFailedError as error:
            raise TrainingError(f"training `{task.stage}` failed: {_first_line(error)} (see the run's logs)") from error
    hear()
    refusal = ray.get(board.refused.remote())
    if refusal is not None:
        raise TrainingError(f"training `{task.stage}` refuses to go on: {refusal}")
    if result.checkpoint is None:
        raise TrainingError(f"training `{task.stage}` ended without a checkpoint")
    with result.checkpoint.as_directory() as folder:
        copy_model(Path(folder) / "model", out)
    return {
        "steps": task.training.steps,
        **{k: last[k] for k in ("loss", "gold_logp", "accuracy", "margin") if k in last},
    }


class _every:  # noqa: N801 - reads as a verb: with _every(1.0, look)
    """Call `action` every `interval` seconds in a thread; an error in it is raised when the block ends."""

    def __init__(self, interval: float, action: Callable[[], None]) -> None:
        self.interval, self.action = interval, action
        self.stop = threading.Event()
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self.stop.wait(self.interval):
            try:
                self.action()
            except ray.exceptions.RayError as error:
                self.error = error
                return

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *exception: object) -> None:
        self.stop.set()
        self.thread.join()
        if self.error is not None and exception[0] is None:
            raise self.error


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
