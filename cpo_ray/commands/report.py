"""`cpo-ray report`: the last stage of a run, or finished runs side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from cpo_ray.commands.failures import exit_on_error, resumable
from cpo_ray.commands.options import AcceptChanges, AsJson, Overrides, RunDir, print_json
from cpo_ray.commands.run import run_stages
from cpo_ray.errors import ConfigError

ONE_OR_THE_OTHER = "report takes one configuration file, or run directories only"


def report(
    paths: Annotated[
        list[Path], typer.Argument(metavar="CONFIG | RUN...", help="A run's YAML file, or run directories.")
    ],
    run_dir: RunDir = None,
    overrides: Overrides = None,
    accept_changes: AcceptChanges = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="With RUN...: the report's folder. Default: reports/<runs>."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the report: one page about a run, or about several runs side by side.

    With a CONFIG it is the last stage of its run: it reads all earlier outputs and writes report, models/*/README.md.

    With RUN directories (runs/demo runs/other) it compares them on the prompts that they share and writes to --out.
    It changes nothing in them, and needs neither their YAML files nor Ray.
    """
    if not any(path.is_dir() for path in paths):
        if as_json:
            raise ConfigError(
                "--json needs run directories; the report of a configuration is in its run's report/report.json"
            )
        with resumable("report", paths[0], run_dir, overrides):
            check_config_usage(paths, out)
            run_stages(paths[0], run_dir, overrides, accept_changes, "report", "report")
        return
    with exit_on_error():
        check_run_usage(paths, run_dir, overrides, accept_changes)
        report_runs(paths, out, as_json=as_json)


def report_runs(roots: Sequence[Path], out: Path | None, *, as_json: bool = False) -> None:
    """Read run directories and write one report about them into `out` (default: reports/<runs>). The runs stay unchanged.

    Raises ConfigError for an `out` inside a run, ArtifactError for a damaged run.
    """
    from cpo_ray.report.terminal import show_report
    from cpo_ray.report.write import write_report

    folder = out or Path("reports") / "-vs-".join(root.resolve().name for root in roots)
    for root in roots:
        if folder.resolve().is_relative_to(root.resolve()):
            raise ConfigError(
                f"--out {folder} is inside the run {root}, which a report never changes: choose another folder"
            )
    summary = write_report(roots, folder)
    if as_json:
        print_json(summary)
    else:
        show_report(summary, folder)


def check_config_usage(paths: Sequence[Path], out: Path | None) -> None:
    """Raise ConfigError for arguments that `report CONFIG` cannot take."""
    if len(paths) > 1:
        raise ConfigError(f"{paths[1]} is not a run directory: {ONE_OR_THE_OTHER}")
    if out is not None:
        raise ConfigError(f"--out needs run directories; the report of {paths[0]} is written into its run's directory")


def check_run_usage(
    paths: Sequence[Path], run_dir: Path | None, overrides: Sequence[str] | None, accept_changes: bool
) -> None:
    """Raise ConfigError for arguments that `report RUN...` cannot take."""
    for path in paths:
        if not path.is_dir():
            raise ConfigError(f"{path} is not a run directory: {ONE_OR_THE_OTHER}")
    if run_dir or overrides or accept_changes:
        raise ConfigError("--run-dir, --set and --accept-changes need a configuration file, not run directories")
