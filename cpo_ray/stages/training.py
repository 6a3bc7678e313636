"""Stages `reference`, `cpo` and `mle`: the models, the last two trained from the first."""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpo_ray.artifacts import SELECTED, Summary, hash_directories
from cpo_ray.cluster.resources import streaming_resources, training_resources
from cpo_ray.config import RunConfig, ScheduledSamplingConfig, TrainingConfig
from cpo_ray.errors import ArtifactError, ConfigError
from cpo_ray.stages.one_training import identify, train
from cpo_ray.stages.record import Output, Read, Stage, StageRun
from cpo_ray.stages.rounds import (
    CPO_KEYS,
    CPO_READS,
    KEPT,
    ROUND_OUTPUTS,
    Round,
    is_iterated,
    kept_rounds,
    train_rounds,
)
from cpo_ray.stages.sampling import GROUP_KEYS, TRAIN_GROUPS, has_validation, is_streamed, outside_files
from cpo_ray.stages.tuning import RATES, is_tuned, trial_names, tune

if TYPE_CHECKING:
    from cpo_ray.training.task import Task


def is_from_scratch(config: RunConfig) -> bool:
    """Whether the reference starts from random weights."""
    return config.model.path is None


STREAM_READS = ("models/reference", "data", Read("groups/validation", when=has_validation))
MLE_KEYS = ("mle", "training", "adapter", "seed")
MLE_READS = (  # of the groups that `cpo` trains on, the examples without their negatives
    "models/reference",
    Read("groups/train", part=SELECTED),
    Read("groups/validation", when=has_validation, part=SELECTED),
    Read("models/cpo", when=is_iterated, part=KEPT),  # the number of rounds that it is the result of
)
INITIAL = Output("models/initial", reads=("data",), keys=("model", "seed"), when=is_from_scratch)
REFERENCE_KEYS = ("reference", "seed", "model.path")
REFERENCE_MODEL = Output(  # trained whole, also if later stages train an adapter of it
    "models/reference", reads=("data", INITIAL), keys=REFERENCE_KEYS, when=is_from_scratch
)
PRETRAINED_REFERENCE = Output(
    REFERENCE_MODEL.name,
    reads=("data",),
    keys=(*REFERENCE_KEYS, "adapter"),
    ignored=("adapter.export",),  # it is sampled from, so it always has merged weights
    when=lambda config: not is_from_scratch(config),
)
CPO_MODEL = Output(
    "models/cpo",
    reads=CPO_READS,
    keys=CPO_KEYS,
    when=lambda config: not is_streamed(config) and not is_tuned(config) and not is_iterated(config),
)
STREAMED_CPO_MODEL = Output("models/cpo", STREAM_READS, (*CPO_KEYS, *GROUP_KEYS), when=is_streamed)
STREAMED_GROUPS = Output(TRAIN_GROUPS.name, STREAM_READS, (*CPO_KEYS, *GROUP_KEYS), when=is_streamed)
CPO_TRIALS = Output("trials/cpo/{model}", CPO_READS, CPO_KEYS, ignored=RATES, models=trial_names)
TUNED_CPO_MODEL = Output(
    "models/cpo", reads=(*CPO_READS, CPO_TRIALS), keys=(*CPO_KEYS, "tuning"), ignored=RATES, when=is_tuned
)
MLE_MODEL = Output(
    "models/mle", reads=MLE_READS, keys=MLE_KEYS, ignored=RATES, when=lambda config: not is_tuned(config)
)
MLE_TRIALS = Output("trials/mle/{model}", MLE_READS, MLE_KEYS, ignored=RATES, models=trial_names)
TUNED_MLE_MODEL = Output(
    "models/mle", reads=(*MLE_READS, MLE_TRIALS), keys=(*MLE_KEYS, "tuning"), ignored=RATES, when=is_tuned
)


def train_reference(stage: StageRun) -> None:
    """Train the reference by MLE, from random weights or from a pretrained model."""
    config, examples = stage.config, stage.read("data")
    tokenizer = examples.path / "tokenizer"
    if config.model.path is None:
        initial = stage.make(INITIAL.name, partial(_initialize, config, tokenizer))
        start, also = str(initial.path), None
    else:
        folder = Path(config.model.path)
        start = str(folder.resolve()) if folder.is_dir() else config.model.path
        also = hash_directories(model_files=config.model.path)
        if not stage.is_current(REFERENCE_MODEL.name, also):
            _check_fit(config, tokenizer)
    splits = {name: examples.path / name for name in _splits(config.reference)}
    task = partial(_mle_task, stage, config.reference, start, splits, tokenizer=tokenizer, **_reference_adapter(config))
    train(stage, REFERENCE_MODEL.name, training_resources(config.reference, config.cluster), task, also)


def train_cpo(stage: StageRun) -> None:
    """Train the policy by CPO from the reference, on groups on disk or on groups that are sampled meanwhile."""
    config = stage.config
    if is_streamed(config):
        also = outside_files(config.sampling)
        task = partial(_streamed_task, stage, also)
        train(stage, STREAMED_CPO_MODEL.name, streaming_resources(config), task, also)
    elif is_tuned(config):
        tune(stage, TUNED_CPO_MODEL, CPO_TRIALS, config.training, partial(_groups_task, stage))
    elif is_iterated(config):
        train_rounds(stage, partial(_round_task, stage))
    else:
        task = partial(_groups_task, stage, config.training)
        train(stage, CPO_MODEL.name, training_resources(config.training, config.cluster), task)


def train_mle(stage: StageRun) -> None:
    """Continue MLE from the reference on the prompts of `cpo`, for as many steps, with PSS if configured: the baseline."""
    config, training = stage.config, stage.config.mle_training
    model, sampled = str(stage.read("models/reference").path), config.mle.scheduled_sampling
    splits = {name: stage.read(f"groups/{name}").path / SELECTED for name in _splits(training)}

    def open_task(training: TrainingConfig) -> contextlib.AbstractContextManager["Task"]:
        return _mle_task(stage, training, model, splits, sampled)

    if is_tuned(config):
        tune(stage, TUNED_MLE_MODEL, MLE_TRIALS, training, open_task)
        return
    also: dict[str, float] = {"learning_rate": training.learning_rate}
    if is_iterated(config):  # as many steps as the rounds that lead to the policy
        steps = kept_rounds(stage.read("models/cpo")) * config.training.steps
        training, also = training.model_copy(update={"steps": steps}), also | {"steps": steps}
    train(stage, MLE_MODEL.name, training_resources(training, config.cluster), partial(open_task, training), also)


def _reference_adapter(config: RunConfig) -> dict[str, Any]:
    """Fields of the reference's task: it is trained whole if it starts from random weights, which a low rank cannot replace."""
    if config.adapter is None or is_from_scratch(config):
        return {"adapter": None}
    return {"adapter": config.adapter.model_copy(update={"export": "merged"}), "continue_adapter": False}


def _check_fit(config: RunConfig, tokenizer: Path) -> None:
    """Compare the pretrained model with the run's tokenizer, with which the examples were tokenized, and with the lengths."""
    from cpo_ray.checks.model_fit import check_model_fit
    from cpo_ray.data.tokenization import load_tokenizer

    check_model_fit(config, load_tokenizer, tokenizer_path=str(tokenizer))


def _check_adapter(config: RunConfig) -> None:
    if config.adapter is not None:
        from cpo_ray.training.adapter_checks import check_adapter

        lacking = check_adapter(config)
        if lacking is not None:  # the driver is on a machine of the run
            raise ConfigError(lacking)


def _initialize(config: RunConfig, tokenizer: Path, out: Path) -> Summary:
    from cpo_ray.training.models import initialize_model

    return initialize_model(config.model, tokenizer, config.seed, out)


def _task(stage: StageRun, training: TrainingConfig, model: str, *, curve: str | None = None, **fields: Any) -> "Task":
    """A worker's task, with what all trainings share. curve: see `train`."""
    from cpo_ray.training.task import Task

    name, config = curve or stage.stage.name, stage.config
    shared = {"adapter": config.adapter, "continue_adapter": True}
    return Task(
        stage=name,
        training=training.on(0),  # as it is, where the placement has set the number of workers
        model=model,
        seed=config.seed,
        cuda=config.cluster.uses_cuda,
        threads=config.cluster.threads_per_worker,
        profile=stage.root / "profiles" / name if training.profile_steps else None,
        **shared | fields,
    )


@contextlib.contextmanager
def _mle_task(
    stage: StageRun,
    training: TrainingConfig,
    model: str,
    splits: Mapping[str, Path],
    scheduled_sampling: ScheduledSamplingConfig | None = None,
    **fields: Any,
) -> Iterator["Task"]:
    """Next-token loss on the examples in the folder `train`, with the first of `validation`, if it is given, held out."""
    rows: dict[str, Any] = {"rows": splits["train"], "validation": splits.get("validation")}
    mle: dict[str, Any] = {"objective": None, "scheduled_sampling": scheduled_sampling}
    yield _task(stage, training, model, **mle, **rows, **fields)


def _splits(training: TrainingConfig) -> list[str]:
    return ["train", "validation"] if training.validation_rows else ["train"]


@contextlib.contextmanager
def _groups_task(stage: StageRun, training: TrainingConfig) -> Iterator["Task"]:
    """The CPO loss on the groups on disk."""
    yield _cpo_task(stage, training, Round(1), rows=_groups_of(stage, Round(1)))


@contextlib.contextmanager
def _round_task(stage: StageRun, this: Round) -> Iterator["Task"]:
    """The CPO loss on the groups of a round."""
    training = stage.config.training
    first = (this.number - 1) * training.steps
    yield _cpo_task(stage, training, this, rows=_groups_of(stage, this), curve=this.curve, first_batch=first)


def _groups_of(stage: StageRun, this: Round) -> Path:
    """The groups of a round. Raises ArtifactError unless the model that the policy starts from has scored them."""
    groups, start = stage.read(this.train), stage.read(this.reference)
    scored_by = groups.manifest.inputs.get("reads", {}).get(start.name, start.fingerprint)
    if scored_by != start.fingerprint:
        raise ArtifactError(
            f"{groups.name} was sampled and scored under another {start.name} ({scored_by}) than the one that the policy "
            f"starts from ({start.fingerprint}): the reference must be the policy's own start. Run the stage "
            f"`{stage.writers.get(groups.name, groups.name)}` again"
        )
    return groups.path


@contextlib.contextmanager
def _streamed_task(stage: StageRun, also: Mapping[str, Any]) -> Iterator["Task"]:
    """The CPO loss on groups that are sampled meanwhile. Afterwards the groups of some steps are kept as an artifact."""
    from cpo_ray.sampling.streaming import open_stream, write_recorded

    config, examples, reference = stage.config, stage.read("data"), stage.read("models/reference")
    folder = stage.root / "groups" / f".stream-{identify(stage, STREAMED_CPO_MODEL.name, also)}"

    def order(rows: int) -> Callable[[int], list[int]]:
        from cpo_ray.training.batch_order import BatchOrder

        return BatchOrder(rows, config.training.prompts_per_step, config.seed).at

    stream = open_stream(config, examples.path, reference.path, folder, order)
    yield _cpo_task(stage, config.training, Round(1), rows=None, stream=stream)
    stage.make(STREAMED_GROUPS.name, partial(write_recorded, stream), also)
    shutil.rmtree(folder)


def _cpo_task(stage: StageRun, training: TrainingConfig, this: Round, **source: Any) -> "Task":
    return _task(
        stage,
        training,
        str(stage.read(this.reference).path),
        objective=stage.config.objective,
        scheduled_sampling=None,
        validation=stage.read("groups/validation").path if training.validation_rows else None,
        **source,
    )


REFERENCE = Stage(
    "reference",
    "train the frozen reference by next-token loss",
    (INITIAL, REFERENCE_MODEL, PRETRAINED_REFERENCE),
    train_reference,
    _check_adapter,
)
CPO = Stage(
    "cpo",
    "train the policy to prefer the truth over its negatives",
    (CPO_MODEL, STREAMED_CPO_MODEL, STREAMED_GROUPS, CPO_TRIALS, TUNED_CPO_MODEL, *ROUND_OUTPUTS),
    train_cpo,
    _check_adapter,
)
MLE = Stage(
    "mle",
    "the baseline: as many steps of next-token loss on the same prompts",
    (MLE_MODEL, MLE_TRIALS, TUNED_MLE_MODEL),
    train_mle,
    _check_adapter,
)
