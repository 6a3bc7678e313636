"""The stages of a run in order: prompts become groups, groups become models, models answer, answers are judged.

Each stage reads artifacts of earlier ones and writes its own. An artifact that was made from the same inputs is reused. What a
stage reads and writes is in its record (`cpo_ray/stages/`).
"""

from pathlib import Path

from rich.markup import escape

from cpo_ray.config import RunConfig
from cpo_ray.config.spelling import did_you_mean
from cpo_ray.errors import ConfigError
from cpo_ray.monitoring.console import redirect_output, say
from cpo_ray.monitoring.events import recording
from cpo_ray.monitoring.prometheus import metric_labels
from cpo_ray.run_directory import open_run
from cpo_ray.stages import STAGES, perform

__all__ = ["STAGES", "check_stages", "run_pipeline"]


def check_stages(first: str | None, last: str | None) -> None:
    """Raise ConfigError for a stage that does not exist, naming the nearest, or stages in the wrong order."""
    names = list(STAGES)
    for option, name in (("--from", first), ("--until", last)):
        if name is not None and name not in STAGES:
            raise ConfigError(
                f"{option} {name}: no such stage{did_you_mean(name, names) or '.'} In order: {', '.join(names)}"
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
    for name in chosen:
        STAGES[name].check(config)  # now, not after the hours of the stages before it
    with open_run(config, root, accept_changes=accept_changes) as run:
        for name in chosen:
            stage = STAGES[name].under(config)
            say(f"[bold]{name}[/]: {stage.about}")
            if stage.writes:  # none: this configuration skips the stage, which says why
                say(f"  [dim]reads {', '.join(stage.reads) or 'the data source'}; writes {', '.join(stage.writes)}[/]")
            logs = root / "logs"
            with (
                redirect_output(logs / f"{name}.log"),
                recording(logs / "events.jsonl", config.name, name),
                metric_labels(config.name, name),
            ):
                perform(name, run)
    following = names[names.index(chosen[-1]) + 1 :]
    if following:
        say(f"  [dim]next: cpo-ray {following[0]} {escape(command)}[/]")
