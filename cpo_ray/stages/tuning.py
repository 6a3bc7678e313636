"""The learning rate of a training, chosen by the validation loss: one trial per rate, all with the same budget.

A trial is an artifact of its own, `trials/STAGE/RATE`, with its own checkpoints. The best becomes the stage's model.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpo_ray.artifacts import Artifact, Summary
from cpo_ray.artifacts.store import Store
from cpo_ray.cluster.resources import training_resources
from cpo_ray.config import RunConfig, TrainingConfig
from cpo_ray.monitoring.console import say
from cpo_ray.stages.one_training import checkpoint_folder, join_summaries, show_curve, train
from cpo_ray.stages.record import Output, StageRun

if TYPE_CHECKING:
    from cpo_ray.training.task import Task

OpenTaskAt = Callable[[TrainingConfig], AbstractContextManager["Task"]]

RATES = ("training.learning_rate", "mle.learning_rate")  # of a trial, its rate counts instead


def is_tuned(config: RunConfig) -> bool:
    """Whether stages `cpo` and `mle` try several learning rates."""
    return bool(config.tuning.learning_rates)


def trial_names(config: RunConfig) -> list[str]:
    """The trials of either stage; none if nothing is tuned."""
    return config.tuning.trial_names


def tune(stage: StageRun, model: Output, trials: Output, training: TrainingConfig, open_task: OpenTaskAt) -> None:
    """Train once per rate of `tuning.learning_rates`, and keep the model with the lowest validation loss as `model`."""
    resources = training_resources(training, stage.config.cluster)
    finished: dict[float, Artifact] = {}
    for rate, name in zip(stage.config.tuning.learning_rates, trial_names(stage.config), strict=True):
        task = partial(open_task, training.model_copy(update={"learning_rate": rate}))
        label = f"{stage.stage.name}-{name}"
        finished[rate] = train(stage, trials.named(name), resources, task, _inputs(rate), label=label)
    losses = {rate: trial.manifest.summary["validation_loss"] for rate, trial in finished.items()}
    best = min(losses, key=losses.__getitem__)
    tried = ", ".join(f"{rate:g} ({loss:.4f})" for rate, loss in losses.items())
    say(f"  learning rates tried, with validation losses: {tried}; kept: {best:g}")
    stage.make(model.name, partial(_keep, finished[best], choice(losses)))
    show_curve(stage, checkpoint_folder(stage, finished[best].name, _inputs(best)))


def choice(losses: Mapping[float, float]) -> Summary:
    """What the kept model's summary says of the trials. losses: learning rate -> validation loss.

    A warning if the best rate is the lowest or the highest: a better one may be beyond it.
    """
    best = min(losses, key=losses.__getitem__)
    summary: Summary = {
        "learning_rate": best,
        "trials": [{"learning_rate": rate, "validation_loss": loss} for rate, loss in losses.items()],
    }
    for end, which, beyond in ((min(losses), "lowest", "lower"), (max(losses), "highest", "higher")):
        if best == end:
            warning = f"the best learning rate, {best:g}, is the {which} of tuning.learning_rates: a {beyond} one may be better"
            summary["warnings"] = [f"{warning}, so the list may be too short"]
    return summary


def _keep(trial: Artifact, chosen: Summary, out: Path) -> Summary:
    return join_summaries(Store.copy(trial, out), chosen)


def _inputs(rate: float) -> dict[str, Any]:
    return {"learning_rate": rate}
