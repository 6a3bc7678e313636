"""`cpo-ray sweep`: a queue of runs over seeds and arms, which share what they have in common."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cpo_ray.artifacts import CHECKOUT, Summary, canonical, lock_run
from cpo_ray.commands.failures import INTERRUPTED, exit_on_error
from cpo_ray.commands.options import AcceptChanges
from cpo_ray.errors import ConfigError, CpoRayError, SweepError
from cpo_ray.monitoring.console import say
from cpo_ray.pipeline import STAGES, check_stages
from cpo_ray.run_directory import run_directory
from cpo_ray.submission.sweeps.grid import Sweep, SweepRun, load_sweep, select_runs
from cpo_ray.submission.sweeps.outcomes import Outcome, read_outcome, status_of
from cpo_ray.submission.sweeps.preregistration import register, revision
from cpo_ray.submission.sweeps.queue import Queue
from cpo_ray.submission.sweeps.sharing import plan_work
from cpo_ray.submission.sweeps.times import StageEstimate, Times, format_seconds

STATUS_STYLE = {"done": "green", "failed": "red", "begun": "yellow", "waiting": "dim"}


def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The sweep's YAML file.")],
    run_dir: Annotated[
        Path | None,
        typer.Option(
            "--run-dir", metavar="DIR", help="The sweep's directory. Default: <name> in CPO_RAY_RUNS, or runs."
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="ARM,SEED", help="Only this arm, this seed, or this run. Repeatable."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="List what would run, what is shared, and how long it takes. Starts nothing."),
    ] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed ones again.")] = False,
    accept_changes: AcceptChanges = False,
) -> None:
    """Run a grid of arms and seeds, one run at a time. Run it again to continue: finished runs are skipped.

    The file names a base configuration, seeds, and arms that change some of its keys (docs/sweeps.md). What runs have in
    common is made once. A run that fails is recorded with its error, and the others go on.
    """
    try:
        with exit_on_error():
            loaded = load_sweep(file)
            check_stages(None, loaded.file.until)
            root, runs = run_directory(loaded.file.name, run_dir), select_runs(loaded, only or ())
            if dry_run:
                show_plan(loaded, runs, root)
                return
            perform(loaded, runs, root, retry_failed, accept_changes)
    except KeyboardInterrupt:
        say("Stopped. The same command continues the sweep.")
        raise typer.Exit(INTERRUPTED) from None


def perform(loaded: Sweep, runs: Sequence[SweepRun], root: Path, retry_failed: bool, accept_changes: bool) -> None:
    """Perform the runs that are not finished, then print where each stands. Raises SweepError if one has failed."""
    for run in runs:
        for name in stages_of(loaded):
            STAGES[name].check(run.config)
    with lock_run(root):
        commit = partial(revision, CHECKOUT, register(loaded, root))
        Queue(loaded, root, retry_failed, accept_changes, commit).perform(runs)
        Console().print(status_table(loaded, runs, root))
    failed = [run.label for run in runs if status_of(run, loaded, root) == "failed"]
    if failed:
        raise SweepError(
            f"{len(failed)} of {len(runs)} runs failed: {'; '.join(failed)}. Their errors are in the table above and in "
            f"{root}/ARM/SEED/logs/. --retry-failed runs them again."
        )


def stages_of(loaded: Sweep) -> list[str]:
    """The stages that the sweep performs."""
    names = list(STAGES)
    return names[: names.index(loaded.file.until) + 1] if loaded.file.until else names


def status_table(loaded: Sweep, runs: Sequence[SweepRun], root: Path) -> Table:
    """A row per run: its status, the time of its stages, and the error of a failed one."""
    table = Table(box=None, pad_edge=False)
    for heading in ("run", "status", "time", "error"):
        table.add_column(heading, no_wrap=heading != "error")
    for run in runs:
        status, outcome = status_of(run, loaded, root), read_outcome(run.root(root))
        error = outcome.error if outcome is not None and status == "failed" else ""
        spent = format_seconds(sum(record.seconds for record in outcome.stages.values())) if outcome else ""
        table.add_row(escape(run.label), f"[{STATUS_STYLE[status]}]{status}[/]", spent, escape(error))
    return table


def show_plan(loaded: Sweep, runs: Sequence[SweepRun], root: Path) -> None:
    """Print what would run, what it would share, and how long it would take."""
    todo = [run for run in runs if status_of(run, loaded, root) not in ("done", "failed")]
    work = plan_work(loaded.runs, todo, root, stages_of(loaded))
    times = Times(finished_runs(loaded, root), ArmPlanner())
    table = Table(box=None, pad_edge=False)
    for heading in ("run", "status", "stages to perform", "shared with another run", "about"):
        table.add_column(heading, no_wrap=heading in ("run", "status", "about"))
    estimates: list[StageEstimate] = []
    for run in todo:
        steps, expected = work[run.key], times.estimate(run, work[run.key])
        estimates += expected
        makes = ", ".join(step.stage + (" in part" if step.shares else "") for step in steps if step.makes)
        shares = ", ".join(step.stage for step in steps if not step.makes)
        about = format_seconds(sum(estimate.seconds for estimate in expected))
        table.add_row(escape(run.label), status_of(run, loaded, root), makes, shares, about)
    if todo:
        Console().print(table)
    for line in summarize(loaded, runs, root, estimates):
        say(escape(line))
    try:
        register(loaded, root, dry_run=True)
    except CpoRayError as error:
        say(f"[yellow]the sweep would not start[/]: {escape(str(error))}")


def summarize(loaded: Sweep, runs: Sequence[SweepRun], root: Path, estimates: Sequence[StageEstimate]) -> list[str]:
    """The number of runs by status, the whole time, and where it is known from."""
    counts = Counter(status_of(run, loaded, root) for run in runs)
    by_status = ", ".join(f"{count} {status}" for status, count in counts.items())
    lines = [f"{len(runs)} runs ({len(loaded.arms)} arms, {len(loaded.file.seeds)} seeds): {by_status}"]
    total: Counter[str] = Counter()
    for estimate in estimates:
        total[estimate.origin] += round(estimate.seconds)
    unknown = sorted({estimate.stage for estimate in estimates if estimate.origin == "unknown"})
    origins = [f"{format_seconds(total[name])} by finished runs of {name}" for name in ("the same arm", "other arms")]
    origins = [text for name, text in zip(("the same arm", "other arms"), origins, strict=True) if total[name]]
    origins += [f"{format_seconds(total['plan'])} by `cpo-ray plan`"] if total["plan"] else []
    whole = format_seconds(total.total())
    lines.append(f"about {whole} to go" + (f": {', '.join(origins)}" if origins else ""))
    if unknown:
        lines.append(f"not included, because no run of this sweep has finished them yet: {', '.join(unknown)}")
    return lines


def finished_runs(loaded: Sweep, root: Path) -> list[tuple[SweepRun, Outcome]]:
    """The runs that are done, with their outcomes."""
    found = [(run, read_outcome(run.root(root))) for run in loaded.runs if status_of(run, loaded, root) == "done"]
    return [(run, outcome) for run, outcome in found if outcome is not None]


class ArmPlanner:
    """Estimates a run by `cpo-ray plan`: on this machine's cores, or on the GPUs that it assumes for a run that uses GPUs."""

    def __init__(self) -> None:
        self.samples: dict[str, Summary | None] = {}  # by the data's configuration: arms share their data

    def __call__(self, run: SweepRun) -> dict[str, float]:
        """Estimated seconds of the run's stages; nothing for a hub model that is not on this machine."""
        from cpo_ray.commands.plan import GpuKind, sample_embedded
        from cpo_ray.planning.estimate import make_plan

        gpu = GpuKind.A100_80 if run.config.cluster.worker_gpus else GpuKind.CPU
        data = canonical(run.arm_inputs["data"])
        if data not in self.samples:
            self.samples[data] = sample_embedded(run.config)
        try:
            return make_plan(run.config, gpu.value, 1, trial=self.samples[data]).stage_seconds
        except ConfigError:
            return {}
