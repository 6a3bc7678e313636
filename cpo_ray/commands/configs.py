"""`cpo-ray configs`: list the shipped configurations, show or copy one."""

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cpo_ray.commands.failures import exit_on_error
from cpo_ray.config.shipped import copy_shipped, opening, shipped_configs, shipped_text
from cpo_ray.monitoring.console import say

configs = typer.Typer(
    help="List the shipped configurations, show one, or copy one to start from.", invoke_without_command=True
)


@configs.callback()
def _configs(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_configs()


@configs.command("list")
def list_configs() -> None:
    """List the shipped configurations, each with its first line."""
    with exit_on_error():
        table = Table(box=None, pad_edge=False)
        table.add_column("config", no_wrap=True, style="bold")
        table.add_column("what it is")
        for name, path in shipped_configs().items():
            table.add_row(escape(name), escape(opening(path.read_text(encoding="utf-8"))))
        Console(soft_wrap=False).print(table)
        say("Read one with: cpo-ray configs show NAME; copy it with: cpo-ray configs copy NAME")


@configs.command("show")
def show_config(name: Annotated[str, typer.Argument(help="A name from `cpo-ray configs`.")]) -> None:
    """Print a shipped configuration, with the keys of the file that it extends."""
    with exit_on_error():
        typer.echo(shipped_text(name), nl=False)


@configs.command("copy")
def copy_config(
    name: Annotated[str, typer.Argument(help="A name from `cpo-ray configs`.")],
    to: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="Default: NAME.yaml in this folder.")] = None,
) -> None:
    """Copy a shipped configuration. Never overwrites a file."""
    with exit_on_error():
        target = copy_shipped(name, to)
        say(escape(f"copied to {target}; next: cpo-ray validate {shlex.quote(str(target))}"))
