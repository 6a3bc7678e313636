"""`cpo-ray submit`: run the pipeline as a job on a Ray cluster."""

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from cpo_ray.commands.failures import INTERRUPTED
from cpo_ray.commands.options import AcceptChanges, FirstStage, LastStage, Overrides
from cpo_ray.config.loading import load_config
from cpo_ray.monitoring.console import console, say
from cpo_ray.pipeline import check_stages


def submit(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The run's YAML file, on this machine.")],
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            metavar="URL",
            help="The dashboard. Default: RAY_API_SERVER_ADDRESS, or port 8265 of this machine.",
        ),
    ] = None,
    run_dir: Annotated[
        str | None,
        typer.Option(
            "--run-dir", metavar="DIR", help="The run's directory on the cluster. Default: in its CPO_RAY_RUNS."
        ),
    ] = None,
    overrides: Overrides = None,
    first: FirstStage = None,
    last: LastStage = None,
    accept_changes: AcceptChanges = False,
    include: Annotated[
        list[Path] | None,
        typer.Option("--include", metavar="PATH", help="A local file or package to upload too. Repeatable."),
    ] = None,
    reports: Annotated[Path, typer.Option("--reports", metavar="DIR", help="Local folder for reports.")] = Path(
        "reports"
    ),
) -> None:
    """Run the pipeline on a Ray cluster: upload, submit, follow the log, fetch the report.

    Exits with the job's code. Ctrl-C leaves the job running; the same command follows it again, or continues a run that
    was stopped. While a run is active, another command or configuration for it is refused. Secrets are not sent: the
    cluster must have them in its environment (docs/cluster.md).
    """
    from cpo_ray.submission import jobs
    from cpo_ray.submission.upload import job_command

    check_stages(first, last)
    resolved = load_config(config, tuple(overrides or ()))
    command = job_command(resolved, run_dir, first=first, last=last, accept_changes=accept_changes)
    client = jobs.connect(address)
    job, new = jobs.send(client, resolved, command, include or [], run_dir)
    say(f"[bold]{escape(job)}[/] {'submitted' if new else 'is already running: following it'}")
    try:
        outcome = jobs.follow(client, job, _write)
    except KeyboardInterrupt:
        say(f"{escape(job)} keeps running. The same command follows it; `ray job stop {shlex.quote(job)}` stops it.")
        raise typer.Exit(INTERRUPTED) from None
    if outcome.code:
        say(f"[red]{escape(job)} ended with {outcome.code}[/]: {escape(outcome.message.strip())}")
        raise typer.Exit(outcome.code)
    if last in (None, "report"):
        target = reports / resolved.name
        jobs.fetch_report(client, job, resolved, run_dir, target)
        say(f"[bold]{escape(str(target / 'index.html'))}[/]")


def _write(text: str) -> None:
    console.file.write(text)
    console.file.flush()
