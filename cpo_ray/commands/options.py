"""Options that several commands share, and a parser for options that take several numbers."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from typer.core import TyperCommand

from cpo_ray.commands.failures import exit_on_error
from cpo_ray.config.shipped import find_config


def _find_config(given: Path) -> Path:
    with exit_on_error():
        return find_config(given)


ConfigPath = Annotated[
    Path,
    typer.Argument(metavar="CONFIG", help="The run's YAML file, or the name of a shipped one.", callback=_find_config),
]
RunDir = Annotated[
    Path | None,
    typer.Option("--run-dir", metavar="DIR", help="The run's directory. Default: <name> in CPO_RAY_RUNS, or in runs."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key, e.g. training.steps=100. Repeatable."),
]
FirstStage = Annotated[str | None, typer.Option("--from", metavar="STAGE", help="Start with this stage.")]
LastStage = Annotated[str | None, typer.Option("--until", metavar="STAGE", help="Stop after this stage.")]
AcceptChanges = Annotated[
    bool,
    typer.Option("--accept-changes", help="The run was made with other settings: redo in place what they affect."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text.")]


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout, whatever the terminal."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=_as_json))


def _as_json(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)


class MultiNumberCommand(TyperCommand):
    """A command whose number options take several values: `--alpha 0.1 0.3` is `--alpha 0.1 --alpha 0.3`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Spread the numbers that follow a repeatable option, then parse as usual."""
        repeatable = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        return super().parse_args(ctx, list(spread_numbers(args, repeatable)))


def spread_numbers(args: Iterable[str], options: set[str]) -> Iterable[str]:
    """Repeat the last of `options` before each further number that follows its first value."""
    option, taken = "", False
    for arg in args:
        if arg in options:
            option, taken = arg, False
        elif option and taken and is_number(arg):
            yield option
        elif option and taken:
            option = ""
        else:
            taken = bool(option)
        yield arg


def is_number(text: str) -> bool:
    """True if `float` accepts the text. Negative numbers and `nan` are numbers here; the command itself rejects them."""
    try:
        float(text)
    except ValueError:
        return False
    return True
