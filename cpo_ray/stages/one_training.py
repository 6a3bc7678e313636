"""One training as an artifact: it waits for its resources, resumes from its checkpoints, and logs its metrics."""

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpo_ray.artifacts import Artifact, Summary, canonical
from cpo_ray.cluster.waiting import Bundle
from cpo_ray.errors import Preempted
from cpo_ray.monitoring.prometheus import measured_bar
from cpo_ray.monitoring.trackers import track
from cpo_ray.monitoring.training_monitor import TrainingMonitor
from cpo_ray.stages.record import StageRun

if TYPE_CHECKING:
    from cpo_ray.training.task import Task

OpenTask = Callable[[], AbstractContextManager["Task"]]


def train(
    stage: StageRun,
    name: str,
    resources: Sequence[Bundle],
    open_task: OpenTask,
    also: Mapping[str, Any] | None = None,
    *,
    label: str | None = None,
    curve: str | None = None,
    shift: float = 0.0,
) -> Artifact:
    """Make the model `name` by one training. The task is opened once the resources are free, closed after the last step.

    label: of its progress bar and in trackers; curve: `stage` of its lines in metrics.jsonl; default of both: the stage's name.
    shift: see TrainingMonitor. Raises Preempted if a stop was requested and the model is finished nevertheless.
    """
    stage_name = stage.stage.name
    label, curve = label or stage_name, curve or stage_name
    checkpoints = checkpoint_folder(stage, name, also)
    stop_requested = threading.Event()

    def build(out: Path) -> Summary:
        stage.ray.ensure(resources)
        from cpo_ray.training.trainer import train_model

        metrics = stage.run.metrics
        if not checkpoints.exists():
            metrics.drop_stage(curve)
            checkpoints.mkdir(parents=True)
        with (
            open_task() as task,
            measured_bar(label, task.training.steps, "steps") as progress,
            track(stage.config, stage.root, label) as tracker,
        ):
            monitor = TrainingMonitor(metrics, curve, progress, tracker, shift)
            hooks = monitor.on_metrics, monitor.on_notice
            return train_model(task, stage.config.cluster, checkpoints, out, *hooks, stop_requested)

    show_curve(stage, checkpoints, curve)
    model = stage.make(name, build, also)
    if stop_requested.is_set():
        finished = f"stage `{stage_name}`" if label == stage_name else f"the training {label} of stage `{stage_name}`"
        raise Preempted(f"stop requested: {finished} is finished; the same command goes on with the next")
    return model


def show_curve(stage: StageRun, checkpoints: Path, curve: str | None = None) -> None:
    """Keep the curve of this training, of all with the name `curve` (default: the stage's), in metrics.jsonl."""
    stage.run.metrics.select_training(curve or stage.stage.name, checkpoints)


def checkpoint_folder(stage: StageRun, name: str, also: Mapping[str, Any] | None) -> Path:
    """The folder of this training's checkpoints: the same inputs continue from the same checkpoints."""
    return stage.root / "checkpoints" / f"{stage.stage.name}-{identify(stage, name, also)}"


def identify(stage: StageRun, name: str, also: Mapping[str, Any] | None) -> str:
    """A short hash of the inputs of the output `name`."""
    return hashlib.sha256(canonical(stage.inputs(name, also)).encode()).hexdigest()[:12]


def join_summaries(trained: Summary, chosen: Summary) -> Summary:
    """The summary of a model that was chosen among trained ones: its own, then why it was chosen; the warnings of both."""
    warnings = [*trained.get("warnings", ()), *chosen.get("warnings", ())]
    return trained | chosen | ({"warnings": warnings} if warnings else {})
