"""`cpo-ray show`: print the contents of a run directory, or the data of a configuration."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cpo_ray.commands.failures import exit_on_error
from cpo_ray.commands.options import ConfigPath, Overrides
from cpo_ray.config.loading import load_config

show = typer.Typer(help="Print what a run directory holds, or the data of a configuration.", no_args_is_help=True)


@show.command("groups")
def show_groups(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="The run's directory, e.g. runs/demo.")],
    row_id: Annotated[
        str | None, typer.Option("--id", metavar="X", help="Print one group: the prompt's id, or its beginning.")
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="How many groups to print without --id.")] = 1,
    split: Annotated[
        str, typer.Option("--split", help="`train`, `train-2` of a second round, or `validation`, if the run has it.")
    ] = "train",
) -> None:
    """Print a run's negatives: statistics per kind, and prompts with their candidates, ranks and reference log-probs."""
    from cpo_ray.commands.group_view import render_groups

    with exit_on_error():
        Console(soft_wrap=False).print(render_groups(run_dir, split, row_id, rows))


@show.command("data")
def show_data(
    config: ConfigPath,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="How many rows to print.")] = 3,
    split: Annotated[str, typer.Option("--split", help="`train`, `validation` or `test`.")] = "train",
) -> None:
    """Print the first rows of a configuration's data as text, tokens and loss mask, and count what is left out.

    Reads the data as stage `data` does, into a temporary folder.
    """
    from cpo_ray.commands.data_view import render_data

    with exit_on_error():
        resolved = load_config(config, tuple(overrides or ()))
        Console(soft_wrap=False).print(render_data(resolved, split, rows))
