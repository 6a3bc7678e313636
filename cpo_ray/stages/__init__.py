"""The stages in order. The wings are called from here and from commands, and nowhere else: they never call each other."""

from collections.abc import Mapping

from cpo_ray.config import RunConfig
from cpo_ray.run_directory import Run
from cpo_ray.stages.data import DATA
from cpo_ray.stages.evaluation import JUDGING, MAUVE, REWARD
from cpo_ray.stages.generation import GENERATION
from cpo_ray.stages.merging import MERGING
from cpo_ray.stages.record import Output, Read, Recipe, Stage, StageRun, recipes
from cpo_ray.stages.report import REPORT
from cpo_ray.stages.sampling import SAMPLING
from cpo_ray.stages.text_metrics import TEXT_METRICS
from cpo_ray.stages.training import CPO, MLE, REFERENCE

STAGES: Mapping[str, Stage] = {
    stage.name: stage
    for stage in (
        DATA,
        REFERENCE,
        SAMPLING,
        CPO,
        MLE,
        MERGING,
        GENERATION,
        JUDGING,
        REWARD,
        MAUVE,
        TEXT_METRICS,
        REPORT,
    )
}

__all__ = ["STAGES", "Output", "Read", "Recipe", "Stage", "StageRun", "expected_artifacts", "perform"]


def perform(name: str, run: Run) -> None:
    """Perform one stage of a run. Raises a CpoRayError for anything the user can act on."""
    stage = STAGES[name]
    stage.perform(StageRun(stage, run, expected_artifacts(run.config)))


def expected_artifacts(config: RunConfig) -> dict[str, str]:
    """Every artifact that this configuration leads to -> the stage that writes it."""
    return {name: stage.name for stage in STAGES.values() for name in recipes(stage, config)}
