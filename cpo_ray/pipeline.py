"""The plot: prompts become groups, groups become models, models answer, a judge decides, a page tells it.

Each stage reads artifacts of earlier ones and writes its own; what is there already and made from the same inputs is
reused. `stages` says what each does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape

from cpo_ray import stages
from cpo_ray.config import RunConfig
from cpo_ray.config.shipped import nearest
from cpo_ray.errors import ConfigError
from cpo_ray.monitoring.console import chatter_to, say
from cpo_ray.monitoring.events import recording
from cpo_ray.monitoring.prometheus import measuring
from cpo_ray.run import Run, open_run


@dataclass(frozen=True)
class Stage:
    """One step of the plot: what it is for, what it reads and writes below the run directory, and what does it."""

    about: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    perform: Callable[[Run], None]


STAGES = {
    "data": Stage(
        "read, split and tokenize the examples",
        (),
        ("data",),
        stages.data,
    ),
    "reference": Stage(
        "train the frozen reference by next-token loss",
        ("data",),
        ("models/reference",),
        stages.reference,
    ),
    "sampling": Stage(
        "make negatives for each prompt, score and rank them",
        ("data", "models/reference"),
        ("groups/train",),
        stages.sampling,
    ),
    "cpo": Stage(
        "train the policy to prefer the truth over its negatives",
        ("models/reference", "groups/train"),
        ("models/cpo",),
        stages.cpo,
    ),
    "mle": Stage(
        "the baseline: as many steps of next-token loss",
        ("models/reference", "data"),
        ("models/mle",),
        stages.mle,
    ),
    "merging": Stage(
        "average the weights of both, once per alpha",
        ("models/mle", "models/cpo"),
        ("models/merged-*",),
        stages.merging,
    ),
    "generation": Stage(
        "serve every model and let it answer the same prompts",
        ("models/*", "data"),
        ("generations/*",),
        stages.generation,
    ),
    "judging": Stage(
        "a judge compares each answer with the truth",
        ("generations/*",),
        ("verdicts/*",),
        stages.judging,
    ),
    "reward": Stage(
        "a reward model compares them too, where one is configured",
        ("generations/*",),
        ("reward",),
        stages.reward,
    ),
    "mauve": Stage(
        "compare generated with real continuations as distributions",
        ("generations/*",),
        ("mauve",),
        stages.mauve,
    ),
    "report": Stage(
        "tell it all in one page",
        ("everything above",),
        ("report", "models/*/README.md"),
        stages.report,
    ),
}


def check_stages(first: str | None, last: str | None) -> None:
    """Raise ConfigError for a stage that does not exist, naming the nearest, or stages in the wrong order."""
    names = list(STAGES)
    for option, name in (("--from", first), ("--until", last)):
        if name is not None and name not in STAGES:
            raise ConfigError(
                f"{option} {name}: no such stage; did you mean {nearest(name, names)}? In order: {', '.join(names)}"
            )
    if first and last and names.index(first) > names.index(last):
        raise ConfigError(f"--from {first} comes after --until {last}. In order: {', '.join(names)}")


def run_pipeline(
    config: RunConfig,
    root: Path,
    *,
    first: str | None = None,
    last: str | None = None,
    accept_changes: bool = False,
    command: str,
) -> None:
    """Perform the stages from `first` to `last` (default: all) in the run directory `root`.

    command: what the user types to go on, without `run` and its stage, for the line that says so. Raises a CpoRayError
    for anything the user can act on.
    """
    names = list(STAGES)
    chosen = names[names.index(first or names[0]) : names.index(last or names[-1]) + 1]
    if "judging" in chosen:
        stages.judge_key(config.judge)  # now, not after the hours before it
    with open_run(config, root, accept_changes=accept_changes) as run:
        for name in chosen:
            stage = STAGES[name]
            say(f"[bold]{name}[/]: {stage.about}")
            say(f"  [dim]reads {', '.join(stage.reads) or 'the data source'}; writes {', '.join(stage.writes)}[/]")
            logs = root / "logs"
            with (
                chatter_to(logs / f"{name}.log"),
                recording(logs / "events.jsonl", config.name, name),
                measuring(config.name, name),
            ):
                stage.perform(run)
            following = names[names.index(name) + 1 :]
            if following:
                say(f"  [dim]next: cpo-ray {following[0]} {escape(command)}[/]")
