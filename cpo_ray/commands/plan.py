"""`cpo-ray plan`: estimate what a run needs and costs."""

from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console

from cpo_ray.commands.failures import resumable
from cpo_ray.commands.options import ConfigPath, Overrides, RunDir
from cpo_ray.config.loading import load_config
from cpo_ray.run import run_directory


class GpuKind(StrEnum):
    """The devices whose peak numbers are in `cluster/accelerators.py`."""

    A100_40 = "a100-40"
    A100_80 = "a100-80"
    H100 = "h100"
    CPU = "cpu"


def plan(
    config: ConfigPath,
    run_dir: RunDir = None,
    overrides: Overrides = None,
    gpu: Annotated[GpuKind, typer.Option("--gpu", help="The device to plan for.")] = GpuKind.A100_80,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Machines, of 8 GPUs each.")] = 1,
    parameters: Annotated[
        float | None,
        typer.Option("--parameters", metavar="N", help="Parameters of a hub model that is not on this machine."),
    ] = None,
    price: Annotated[
        float | None,
        typer.Option("--price", metavar="P", min=0, help="Price of a machine-hour, to show the run's cost."),
    ] = None,
) -> None:
    """Estimate rows, tokens, parameters, memory per GPU, GPU-hours, and the same on 2, 8 and 64 machines. Starts nothing."""
    from cpo_ray.planning.estimate import make_plan
    from cpo_ray.planning.tables import render_plan

    with resumable("plan", config, run_dir, overrides):
        resolved = load_config(config, tuple(overrides or ()))
        root = run_directory(resolved.name, run_dir)
        estimate = make_plan(resolved, gpu.value, nodes, root=root, parameters=parameters)
        Console(soft_wrap=False).print(render_plan(estimate, price))
