"""Iterated CPO: each round samples groups from the reference and trains the policy; the policy is the next reference.

Round 1 trains on the groups of stage `sampling`. Stage `cpo` makes those of later rounds itself. Every round has artifacts of
its own (`groups/train-2`, `models/cpo-2`), so a killed run continues in the round that it was in.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from cpo_ray.artifacts import Artifact, Summary, write_json
from cpo_ray.artifacts.store import Store
from cpo_ray.cluster.resources import training_resources
from cpo_ray.config import RunConfig
from cpo_ray.monitoring.console import console, say
from cpo_ray.stages.one_training import join_summaries, train
from cpo_ray.stages.record import Output, Read, StageRun
from cpo_ray.stages.round_figures import (
    RoundFigures,
    describe_round,
    measure_gold,
    measure_round,
    round_table,
    stop_reason,
)
from cpo_ray.stages.sampling import GROUP_KEYS, STREAM_KEYS, has_validation, make_split

if TYPE_CHECKING:
    from cpo_ray.training.task import Task

KEPT = "rounds"  # folder of the final model: how many rounds lead to it, which is all that stage `mle` depends on
SEEDS = 2**31  # seeds of later rounds are below: vLLM's engine takes no larger ones


@dataclass(frozen=True)
class Round:
    """The names of a round's artifacts. number: from 1."""

    number: int

    @property
    def reference(self) -> str:
        """The model that samples and scores the groups, and that the policy starts from."""
        return "models/reference" if self.number == 1 else Round(self.number - 1).model

    @property
    def train(self) -> str:
        """The groups to train on."""
        return "groups/train" if self.number == 1 else f"groups/train-{self.number}"

    @property
    def curve(self) -> str:
        """The name of its training in metrics.jsonl, on progress bars and in trackers."""
        return f"cpo-{self.number}"

    @property
    def model(self) -> str:
        """The policy."""
        return f"models/{self.curve}"

    @property
    def also(self) -> dict[str, int]:
        """What the manifests of its artifacts record besides configuration and reads."""
        return {"round": self.number}

    def seed(self, seed: int) -> int:
        """The seed of its negatives. seed: the run's."""
        from cpo_ray.sampling.seeding import draw_seed

        return seed if self.number == 1 else draw_seed(seed, str(self.number), "round", 0) % SEEDS


OpenRound = Callable[[Round], AbstractContextManager["Task"]]


def is_iterated(config: RunConfig) -> bool:
    """Whether stage `cpo` has several rounds."""
    return config.rounds > 1


def later_rounds(config: RunConfig) -> list[str]:
    """The numbers of the rounds whose groups stage `cpo` makes."""
    return [str(number) for number in range(2, config.rounds + 1)]


def _previous(number: str) -> str:
    return str(int(number) - 1)


CPO_KEYS = ("objective", "training", "adapter", "seed")
VALIDATION_READ = Read("groups/validation", when=has_validation)  # of the first reference in every round: one scale
CPO_READS = ("models/reference", "groups/train", VALIDATION_READ)
ROUND_GROUPS = Output(
    "groups/train-{model}",
    ("data", "models/cpo-{previous}"),
    GROUP_KEYS,
    ignored=STREAM_KEYS,
    models=later_rounds,
    previous=_previous,
)
FIRST_ROUND = Output(Round(1).model, CPO_READS, CPO_KEYS, when=is_iterated)
LATER_ROUND = Output(
    "models/cpo-{model}",
    ("models/cpo-{previous}", "groups/train-{model}", VALIDATION_READ),
    CPO_KEYS,
    models=later_rounds,
    previous=_previous,
)
ITERATED_CPO_MODEL = Output(
    "models/cpo",
    (*CPO_READS, FIRST_ROUND, Read(LATER_ROUND, optional=True)),  # a round that was skipped is not there
    (*CPO_KEYS, "rounds", "rounds_stop"),
    when=is_iterated,
)
ROUND_OUTPUTS = (FIRST_ROUND, ROUND_GROUPS, LATER_ROUND, ITERATED_CPO_MODEL)


def train_rounds(stage: StageRun, open_task: OpenRound) -> None:
    """Take the rounds one after another until all are done or the stop rule applies; keep the last good policy."""
    config = stage.config
    validation = stage.read("groups/validation").path if has_validation(config) else None
    first = measure_gold(stage.read(Round(1).train).path, validation)
    taken: list[Artifact] = []
    figures: list[RoundFigures] = []
    reason = None
    for number in range(1, config.rounds + 1):
        this = Round(number)
        if number > 1:
            sample_round(stage, this)
        shift = measure_gold(stage.read(this.train).path).train_logp - first.train_logp
        taken.append(_train_round(stage, this, open_task, shift))
        figures.append(measure_round(number, taken[-1].manifest.summary, first, shift))
        say(f"  {escape(describe_round(figures[-1]))}")
        reason = stop_reason(figures, config.rounds, config.rounds_stop.max_nll_increase)
        if reason is not None:
            break
    kept = max(1, len(taken) - 1) if reason else len(taken)
    rounds = [{**each, "kept": each["round"] <= kept} for each in figures]
    summary: Summary = {"steps": kept * config.training.steps, "kept": kept, "rounds": rounds}
    summary |= {"reference_nll": first.nll, "stopped": reason}
    if reason is not None:
        summary["warnings"] = [reason]
    unused = [Round(number).model for number in range(len(taken) + 1, config.rounds + 1)]
    stage.make(ITERATED_CPO_MODEL.name, partial(_keep, taken[kept - 1], summary), unused=unused)
    console.print(round_table(rounds, first.nll))


def sample_round(stage: StageRun, this: Round) -> None:
    """Make the groups of a later round: the rows of the first, with negatives and scores of the round's reference."""
    config = stage.config.model_copy(update={"seed": this.seed(stage.config.seed)})
    make_split(stage, this.train, "train", config, this.reference, this.also)


def _train_round(stage: StageRun, this: Round, open_task: OpenRound, shift: float) -> Artifact:
    """shift: the gold's mean log-prob under the round's reference minus that under the first, nats per response."""
    resources = training_resources(stage.config.training, stage.config.cluster)
    return train(
        stage,
        this.model,
        resources,
        partial(open_task, this),
        this.also,
        label=this.curve,
        curve=this.curve,
        shift=shift,
    )


def kept_rounds(model: Artifact) -> int:
    """How many rounds lead to the final policy."""
    return int(model.manifest.summary["kept"])


def _keep(policy: Artifact, summary: Summary, out: Path) -> Summary:
    copied = Store.copy(policy, out)
    write_json(out / KEPT / "kept.json", {"kept": summary["kept"]})
    return join_summaries(copied, summary)
