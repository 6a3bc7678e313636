"""`cpo-ray submit`: a run on a cluster as if it were here."""

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from cpo_ray.config.loading import load_config
from cpo_ray.monitoring.console import console, say
from cpo_ray.pipeline import check_stages


def submit(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The run's YAML file, here.")],
    address: Annotated[
        str | None,
        typer.Option(
            "--address", metavar="URL", help="The dashboard. Default: RAY_API_SERVER_ADDRESS, else port 8265 here."
        ),
    ] = None,
    run_dir: Annotated[
        str | None,
        typer.Option(
            "--run-dir", metavar="DIR", help="Where the run lives, there. Default: CPO_RAY_RUNS of the cluster."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one key. Repeatable.")
    ] = None,
    first: Annotated[str | None, typer.Option("--from", metavar="STAGE", help="Start with this stage.")] = None,
    last: Annotated[str | None, typer.Option("--until", metavar="STAGE", help="Stop after this stage.")] = None,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Redo in place what other settings touch.")
    ] = False,
    include: Annotated[
        list[Path] | None,
        typer.Option("--include", metavar="PATH", help="A file or package of yours to send along. Repeatable."),
    ] = None,
    reports: Annotated[Path, typer.Option("--reports", metavar="DIR", help="Where reports go, here.")] = Path(
        "reports"
    ),
) -> None:
    """Run the pipeline on a Ray cluster: upload, submit, follow the log, fetch the report.

    Exits as the job does. Ctrl-C leaves the job running; the same command follows it again, and goes on with a run that
    was stopped. Another command or configuration for a run that is under way is refused. Secrets are not sent: the
    cluster has them in its environment (docs/cluster.md).
    """
    from cpo_ray.submission import jobs

    check_stages(first, last)
    resolved = load_config(config, tuple(overrides or ()))
    command = jobs.job_command(resolved, run_dir, first=first, last=last, accept_changes=accept_changes)
    client = jobs.connect(address)
    job, new = jobs.send(client, resolved, command, include or [], run_dir)
    say(f"[bold]{escape(job)}[/] {'submitted' if new else 'is running already: following it'}")
    try:
        outcome = jobs.follow(client, job, _write)
    except KeyboardInterrupt:
        say(f"{escape(job)} goes on. The same command follows it; `ray job stop {shlex.quote(job)}` ends it.")
        raise typer.Exit(130) from None
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
