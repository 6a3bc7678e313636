"""`cpo-ray show`: print the contents of a run directory."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cpo_ray.commands.failures import exit_on_error

show = typer.Typer(help="Print what a run directory holds.", no_args_is_help=True)


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
