"""`cpo-ray plan`: estimate what a run needs and costs."""

import tempfile
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from cpo_ray.artifacts import Summary, find_artifact
from cpo_ray.commands.failures import resumable
from cpo_ray.commands.options import AsJson, ConfigPath, Overrides, RunDir, print_json
from cpo_ray.config import RunConfig
from cpo_ray.config.loading import load_config
from cpo_ray.monitoring.console import say, set_quiet
from cpo_ray.run_directory import run_directory

SAMPLE_ROWS = 500  # of an embedded source, whose lengths are known once it is read


class GpuKind(StrEnum):
    """The devices of `cluster/accelerators.py`, and this machine's CPU cores."""

    A100_40 = "a100-40"
    A100_80 = "a100-80"
    H100 = "h100"
    H200 = "h200"
    B200 = "b200"
    L40S = "l40s"
    RTX_4090 = "rtx-4090"
    CPU = "cpu"


def plan(
    config: ConfigPath,
    run_dir: RunDir = None,
    overrides: Overrides = None,
    gpu: Annotated[
        GpuKind, typer.Option("--gpu", help="The device to plan for; `cpu`: the cores of this machine.")
    ] = GpuKind.A100_80,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Machines, of 8 GPUs each (rtx-4090: 4).")] = 1,
    parameters: Annotated[
        float | None,
        typer.Option("--parameters", metavar="N", help="Parameters of a hub model that cannot be read."),
    ] = None,
    price: Annotated[
        float | None,
        typer.Option("--price", metavar="P", min=0, help="Price of a machine-hour, to show the run's cost."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Estimate rows, tokens, parameters, memory per GPU, GPU-hours, and the same on 2, 8 and 64 machines. Starts nothing."""
    from cpo_ray.planning.estimate import make_plan
    from cpo_ray.planning.tables import render_plan

    with resumable("plan", config, run_dir, overrides):
        if as_json:
            set_quiet(True)
        resolved = load_config(config, tuple(overrides or ()))
        root = run_directory(resolved.name, run_dir)
        resolved = with_row_counts(resolved, root)
        trial = sample_embedded(resolved) if find_artifact(root, "data") is None else None
        estimate = make_plan(resolved, gpu.value, nodes, root=root, parameters=parameters, trial=trial)
        if as_json:
            print_json(asdict(estimate))
        else:
            Console(soft_wrap=False).print(render_plan(estimate, price))


def with_row_counts(config: RunConfig, root: Path) -> RunConfig:
    """The configuration with numbers of rows for shares: those of the run's data, or what the beginning of the data shows."""
    if not config.data.has_shares:
        return config
    artifact = find_artifact(root, "data")
    if artifact is None:
        from cpo_ray.data.inspection import read_beginning, with_expected_rows

        counted, remark = with_expected_rows(config, [read_beginning(source) for source in config.data.inputs])
        say(escape("\n".join(remark)))
        return counted
    counts = {key: artifact.manifest.summary[key] for key in ("train_rows", "validation_rows", "test_rows")}
    return config.model_copy(update={"data": config.data.model_copy(update=counts)})


def sample_embedded(config: RunConfig) -> Summary | None:
    """The data stage's summary on a sample of an embedded source, in a temporary folder.

    None for other sources, which may be large or remote, and for a tokenizer that is not trained on the data.
    """
    if config.data.files is not None or config.data.tokenizer.path is not None or config.model.path is not None:
        return None
    from cpo_ray.data.examples import prepare_examples

    sizes = {"train_rows": min(SAMPLE_ROWS, config.data.rows("train")), "validation_rows": 0, "test_rows": 1}
    sample = config.model_copy(update={"data": config.data.model_copy(update=sizes)})
    with tempfile.TemporaryDirectory() as folder:
        return prepare_examples(sample, Path(folder))
