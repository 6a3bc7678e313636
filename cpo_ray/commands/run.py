"""`cpo-ray run`: the whole pipeline; and one command per stage of it, except `report`."""

from collections.abc import Callable
from pathlib import Path

from cpo_ray.commands.failures import command_tail, resumable
from cpo_ray.commands.options import AcceptChanges, ConfigPath, FirstStage, LastStage, Overrides, RunDir
from cpo_ray.commands.placement import PLACED, place_run
from cpo_ray.commands.recipe import warn_about_recipe
from cpo_ray.config.loading import load_config
from cpo_ray.pipeline import STAGES, check_stages, run_pipeline
from cpo_ray.run_directory import run_directory


def run(
    config: ConfigPath,
    run_dir: RunDir = None,
    overrides: Overrides = None,
    first: FirstStage = None,
    last: LastStage = None,
    accept_changes: AcceptChanges = False,
) -> None:
    """Run the whole pipeline, from data to report. Run it again to continue."""
    with resumable("run", config, run_dir, overrides, first=first, last=last):
        check_stages(first, last)
        run_stages(config, run_dir, overrides, accept_changes, first, last)


def stage_command(name: str) -> Callable[..., None]:
    """The command that runs the stage `name` alone. Its help is the stage's description, inputs and outputs."""

    def run_stage(
        config: ConfigPath,
        run_dir: RunDir = None,
        overrides: Overrides = None,
        accept_changes: AcceptChanges = False,
    ) -> None:
        with resumable(name, config, run_dir, overrides):
            run_stages(config, run_dir, overrides, accept_changes, name, name)

    stage = STAGES[name]
    reads = ", ".join(stage.reads) or "the data source"
    about = f"{stage.about[0].upper()}{stage.about[1:]}"
    run_stage.__doc__ = f"{about}.\n\nReads {reads}; writes {', '.join(stage.writes)}."
    return run_stage


def run_stages(
    config: Path,
    run_dir: Path | None,
    overrides: list[str] | None,
    accept_changes: bool,
    first: str | None,
    last: str | None,
) -> None:
    """Load the configuration and run the stages from `first` to `last` (default: all) in the run's directory."""
    resolved = load_config(config, tuple(overrides or ()))
    root = run_directory(resolved.name, run_dir)
    command = command_tail(config, run_dir, overrides)
    names = list(STAGES)
    chosen = set(names[names.index(first or names[0]) : names.index(last or names[-1]) + 1])
    if {"sampling", "cpo"} & chosen:
        warn_about_recipe(resolved)
    if chosen & PLACED:
        resolved = place_run(resolved)
    run_pipeline(resolved, root, first=first, last=last, accept_changes=accept_changes, command=command)
