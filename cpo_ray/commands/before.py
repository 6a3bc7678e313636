"""Commands for before a run: is the configuration right, what will it take, is this machine fit for it?"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.markup import escape

from cpo_ray.commands.failures import errors_in_red, plainly
from cpo_ray.commands.options import ConfigPath, Overrides, RunDir
from cpo_ray.config.loading import load_config
from cpo_ray.monitoring.console import say
from cpo_ray.run import run_directory


class GpuKind(StrEnum):
    """What `plan` knows the numbers of."""

    A100_40 = "a100-40"
    A100_80 = "a100-80"
    H100 = "h100"
    CPU = "cpu"


def validate(config: ConfigPath, overrides: Overrides = None) -> None:
    """Check a configuration and print it with every default filled in. Starts nothing."""
    from cpo_ray.planning.tables import describe_run

    with plainly("validate", config, None, overrides):
        resolved = load_config(config, tuple(overrides or ()))
        say(escape(yaml.safe_dump(resolved.model_dump(mode="json"), sort_keys=False, allow_unicode=True)))
        for line in describe_run(resolved):
            say(escape(line))


def plan(
    config: ConfigPath,
    run_dir: RunDir = None,
    overrides: Overrides = None,
    gpu: Annotated[GpuKind, typer.Option("--gpu", help="What it would run on.")] = GpuKind.A100_80,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Machines, of 8 GPUs each.")] = 1,
    parameters: Annotated[
        float | None, typer.Option("--parameters", metavar="N", help="Of a hub model that is not on this machine.")
    ] = None,
    price: Annotated[
        float | None, typer.Option("--price", metavar="P", min=0, help="Of a machine-hour: what the run then costs.")
    ] = None,
) -> None:
    """Estimate rows, tokens, parameters, memory per GPU, GPU-hours, and the same on 2, 8 and 64 machines. Starts nothing."""
    from cpo_ray.planning.estimate import make_plan
    from cpo_ray.planning.tables import render_plan

    with plainly("plan", config, run_dir, overrides):
        resolved = load_config(config, tuple(overrides or ()))
        root = run_directory(resolved.name, run_dir)
        estimate = make_plan(resolved, gpu.value, nodes, root=root, parameters=parameters)
        Console(soft_wrap=False).print(render_plan(estimate, price))


def doctor(
    run_dir: Annotated[Path, typer.Option("--run-dir", metavar="DIR", help="Where runs will live.")] = Path("runs"),
    cluster: Annotated[
        Path | None,
        typer.Option("--cluster", metavar="FILE", help="Check a cluster.yaml, or a folder of manifests, instead."),
    ] = None,
) -> None:
    """Check this machine: versions, GPUs, network, compilers, Ray's token, disk and memory, each with its remedy."""
    from cpo_ray.checks.cluster_files import examine_cluster
    from cpo_ray.checks.machine import examine, render_checks

    with errors_in_red():
        checks = examine(run_dir) if cluster is None else examine_cluster(cluster, Path.home())
    Console(soft_wrap=False).print(render_checks(checks))
    if any(check.verdict == "fail" for check in checks):
        raise typer.Exit(1)
