"""Stage `report`: one page about everything that the run has made, and a model card in every model's directory."""

from functools import partial
from pathlib import Path

from cpo_ray.artifacts import Summary
from cpo_ray.stages.data import EXAMPLES
from cpo_ray.stages.evaluation import MAUVE_SCORES, REWARDS, VERDICTS
from cpo_ray.stages.generation import GENERATIONS
from cpo_ray.stages.merging import MERGED
from cpo_ray.stages.record import Output, Read, Stage, StageRun
from cpo_ray.stages.rounds import FIRST_ROUND, ITERATED_CPO_MODEL, LATER_ROUND
from cpo_ray.stages.sampling import TRAIN_GROUPS
from cpo_ray.stages.text_metrics import TEXT_SCORES
from cpo_ray.stages.training import (
    CPO_MODEL,
    MLE_MODEL,
    REFERENCE_MODEL,
    STREAMED_CPO_MODEL,
    STREAMED_GROUPS,
    TUNED_CPO_MODEL,
    TUNED_MLE_MODEL,
)

SHOWN = (
    EXAMPLES,
    TRAIN_GROUPS,
    STREAMED_GROUPS,
    REFERENCE_MODEL,
    MLE_MODEL,
    TUNED_MLE_MODEL,
    CPO_MODEL,
    STREAMED_CPO_MODEL,
    TUNED_CPO_MODEL,
    FIRST_ROUND,
    LATER_ROUND,
    ITERATED_CPO_MODEL,
    MERGED,
    GENERATIONS,
    VERDICTS,
    REWARDS,
    MAUVE_SCORES,
    TEXT_SCORES,
)
PAGE = Output("report", reads=tuple(Read(output, optional=True) for output in SHOWN), keys=("*",))


def write_page(stage: StageRun) -> None:
    """Write the page, place the model cards, and print the results."""
    from cpo_ray.report.model_card import place_cards
    from cpo_ray.report.terminal import show_report

    page = stage.make(PAGE.name, partial(_build, stage.root))
    place_cards(page.path / "cards", stage.root / "models")
    show_report(page.manifest.summary, page.path)


def _build(root: Path, out: Path) -> Summary:
    from cpo_ray.report.write import write_report

    return write_report([root], out)


REPORT = Stage("report", "everything in one page", (PAGE,), write_page, places=("models/*/README.md",))
