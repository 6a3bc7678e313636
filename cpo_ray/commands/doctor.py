"""`cpo-ray doctor`: check this machine, or the files that describe a cluster."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cpo_ray.commands.failures import exit_on_error
from cpo_ray.commands.options import AsJson, print_json


def doctor(
    run_dir: Annotated[Path, typer.Option("--run-dir", metavar="DIR", help="The folder for runs.")] = Path("runs"),
    cluster: Annotated[
        Path | None,
        typer.Option("--cluster", metavar="FILE", help="Check a cluster.yaml, or a folder of manifests, instead."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check this machine: versions, GPUs, network, compilers, Ray's token, disk and memory, each with its remedy."""
    from cpo_ray.checks.cluster_files import check_cluster_file
    from cpo_ray.checks.machine import check_machine, render_checks

    with exit_on_error():
        checks = check_machine(run_dir) if cluster is None else check_cluster_file(cluster, Path.home())
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        Console(soft_wrap=False).print(render_checks(checks))
    if any(check.status == "fail" for check in checks):
        raise typer.Exit(1)
