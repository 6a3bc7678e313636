"""Stages `reference`, `cpo` and `mle`: the models, the last two trained from the first."""

import contextlib
import hashlib
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpo_ray.artifacts import SELECTED, Summary, canonical, hash_directories
from cpo_ray.cluster.resources import streaming_resources, training_resources
from cpo_ray.cluster.waiting import Bundle
from cpo_ray.config import RunConfig, ScheduledSamplingConfig, TrainingConfig
from cpo_ray.errors import Preempted
from cpo_ray.monitoring.prometheus import measured_bar
from cpo_ray.monitoring.trackers import track
from cpo_ray.monitoring.training_monitor import TrainingMonitor
from cpo_ray.stages.record import Output, Read, Stage, StageRun
from cpo_ray.stages.sampling import GROUP_KEYS, TRAIN_GROUPS, has_validation, is_streamed, outside_files

if TYPE_CHECKING:
    from cpo_ray.training.task import Task

OpenTask = Callable[[], AbstractContextManager["Task"]]


def is_from_scratch(config: RunConfig) -> bool:
    """Whether the reference starts from random weights."""
    return config.model.path is None


CPO_KEYS = ("objective", "training", "seed")
STREAM_READS = ("models/reference", "data", Read("groups/validation", when=has_validation))
INITIAL = Output("models/initial", reads=("data",), keys=("model", "seed"), when=is_from_scratch)
REFERENCE_MODEL = Output(
    "models/reference",
    reads=("data", Read("models/initial", when=is_from_scratch)),
    keys=("reference", "seed", "model.path"),
)
CPO_MODEL = Output(
    "models/cpo",
    reads=("models/reference", "groups/train", Read("groups/validation", when=has_validation)),
    keys=CPO_KEYS,
    when=lambda config: not is_streamed(config),
)
STREAMED_CPO_MODEL = Output("models/cpo", STREAM_READS, (*CPO_KEYS, *GROUP_KEYS), when=is_streamed)
STREAMED_GROUPS = Output(TRAIN_GROUPS.name, STREAM_READS, (*CPO_KEYS, *GROUP_KEYS), when=is_streamed)
SELECTED_PROMPTS = (  # of the groups that `cpo` trains on, without their negatives
    Read("groups/train", part=SELECTED),
    Read("groups/validation", when=has_validation, part=SELECTED),
)
MLE_MODEL = Output("models/mle", reads=("models/reference", *SELECTED_PROMPTS), keys=("mle", "training", "seed"))


def train_reference(stage: StageRun) -> None:
    """Train the reference by MLE, from random weights or from a pretrained model."""
    config, examples = stage.config, stage.read("data")
    if config.model.path is None:
        initial = stage.make(INITIAL.name, partial(_initialize, config, examples.path / "tokenizer"))
        start, also = str(initial.path), None
    else:
        folder = Path(config.model.path)
        start = str(folder.resolve()) if folder.is_dir() else config.model.path
        also = hash_directories(model_files=config.model.path)
    splits = {name: examples.path / name for name in _splits(config.reference)}
    task = partial(_mle_task, stage, config.reference, start, splits)
    _train(stage, REFERENCE_MODEL, training_resources(config.reference, config.cluster), task, also)


def train_cpo(stage: StageRun) -> None:
    """Train the policy by CPO from the reference, on groups on disk or on groups that are sampled meanwhile."""
    config = stage.config
    if is_streamed(config):
        also = outside_files(config.sampling)
        _train(stage, STREAMED_CPO_MODEL, streaming_resources(config), partial(_streamed_task, stage, also), also)
    else:
        _train(stage, CPO_MODEL, training_resources(config.training, config.cluster), partial(_groups_task, stage))


def train_mle(stage: StageRun) -> None:
    """Continue MLE from the reference on the prompts of `cpo`, for as many steps, with PSS if configured: the baseline."""
    config, reference = stage.config, stage.read("models/reference")
    splits = {name: stage.read(f"groups/{name}").path / SELECTED for name in _splits(config.training)}
    sampled = config.mle.scheduled_sampling
    task = partial(_mle_task, stage, config.training, str(reference.path), splits, sampled)
    _train(stage, MLE_MODEL, training_resources(config.training, config.cluster), task)


def _train(
    stage: StageRun,
    output: Output,
    resources: Sequence[Bundle],
    open_task: OpenTask,
    also: Mapping[str, Any] | None = None,
) -> None:
    """Make the model `output` by one training. The task is opened once the resources are free, closed after the last step."""
    checkpoints = _checkpoints(stage, output, also)
    stop_requested = threading.Event()

    def build(out: Path) -> Summary:
        stage.ray.ensure(resources)
        from cpo_ray.training.trainer import train_model

        metrics, name = stage.run.metrics, stage.stage.name
        if not checkpoints.exists():
            metrics.drop_stage(name)
            checkpoints.mkdir(parents=True)
        with (
            open_task() as task,
            measured_bar(name, task.training.steps, "steps") as progress,
            track(stage.config, stage.root, name) as tracker,
        ):
            monitor = TrainingMonitor(metrics, name, progress, tracker)
            hooks = monitor.on_metrics, monitor.on_notice
            return train_model(task, stage.config.cluster, checkpoints, out, *hooks, stop_requested)

    stage.run.metrics.select_training(stage.stage.name, checkpoints)
    stage.make(output.name, build, also)
    if stop_requested.is_set():
        raise Preempted(
            f"stop requested: stage `{stage.stage.name}` is finished; the same command goes on with the next"
        )


def _checkpoints(stage: StageRun, output: Output, also: Mapping[str, Any] | None) -> Path:
    """The folder of this training's checkpoints: the same inputs continue from the same checkpoints."""
    return stage.root / "checkpoints" / f"{stage.stage.name}-{_identity(stage, output, also)}"


def _identity(stage: StageRun, output: Output, also: Mapping[str, Any] | None) -> str:
    return hashlib.sha256(canonical(stage.inputs(output.name, also)).encode()).hexdigest()[:12]


def _initialize(config: RunConfig, tokenizer: Path, out: Path) -> Summary:
    from cpo_ray.training.models import initialize_model

    return initialize_model(config.model, tokenizer, config.seed, out)


def _task(stage: StageRun, training: TrainingConfig, model: str, **fields: Any) -> "Task":
    """A worker's task, with what all trainings share."""
    from cpo_ray.training.task import Task

    name, config = stage.stage.name, stage.config
    return Task(
        stage=name,
        training=training,
        model=model,
        seed=config.seed,
        cuda=config.cluster.gpus_per_worker > 0,
        threads=config.cluster.threads_per_worker,
        profile=stage.root / "profiles" / name if training.profile_steps else None,
        **fields,
    )


@contextlib.contextmanager
def _mle_task(
    stage: StageRun,
    training: TrainingConfig,
    model: str,
    splits: Mapping[str, Path],
    scheduled_sampling: ScheduledSamplingConfig | None = None,
) -> Iterator["Task"]:
    """Next-token loss on the examples in the folder `train`, with the first of `validation`, if it is given, held out."""
    rows = {"rows": splits["train"], "validation": splits.get("validation")}
    yield _task(stage, training, model, objective=None, scheduled_sampling=scheduled_sampling, **rows)


def _splits(training: TrainingConfig) -> list[str]:
    return ["train", "validation"] if training.validation_rows else ["train"]


@contextlib.contextmanager
def _groups_task(stage: StageRun) -> Iterator["Task"]:
    """The CPO loss on the groups on disk."""
    yield _cpo_task(stage, rows=stage.read("groups/train").path)


@contextlib.contextmanager
def _streamed_task(stage: StageRun, also: Mapping[str, Any]) -> Iterator["Task"]:
    """The CPO loss on groups that are sampled meanwhile. Afterwards the groups of some steps are kept as an artifact."""
    from cpo_ray.sampling.streaming import open_stream, write_recorded

    config, examples, reference = stage.config, stage.read("data"), stage.read("models/reference")
    folder = stage.root / "groups" / f".stream-{_identity(stage, STREAMED_CPO_MODEL, also)}"

    def order(rows: int) -> Callable[[int], list[int]]:
        from cpo_ray.training.batch_order import BatchOrder

        return BatchOrder(rows, config.training.prompts_per_step, config.seed).at

    stream = open_stream(config, examples.path, reference.path, folder, order)
    yield _cpo_task(stage, rows=None, stream=stream)
    stage.make(STREAMED_GROUPS.name, partial(write_recorded, stream), also)
    shutil.rmtree(folder)


def _cpo_task(stage: StageRun, **source: Any) -> "Task":
    training = stage.config.training
    return _task(
        stage,
        training,
        str(stage.read("models/reference").path),
        objective=stage.config.objective,
        scheduled_sampling=None,
        validation=stage.read("groups/validation").path if training.validation_rows else None,
        **source,
    )


REFERENCE = Stage(
    "reference", "train the frozen reference by next-token loss", (INITIAL, REFERENCE_MODEL), train_reference
)
CPO = Stage(
    "cpo",
    "train the policy to prefer the truth over its negatives",
    (CPO_MODEL, STREAMED_CPO_MODEL, STREAMED_GROUPS),
    train_cpo,
)
MLE = Stage("mle", "the baseline: as many steps of next-token loss on the same prompts", (MLE_MODEL,), train_mle)
