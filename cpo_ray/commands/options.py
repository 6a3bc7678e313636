"""Options that several commands share, and what the command line's parser does not know by itself."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="The run's YAML file.")]
RunDir = Annotated[
    Path | None,
    typer.Option("--run-dir", metavar="DIR", help="Where the run lives. Default: <name> in CPO_RAY_RUNS, or in runs."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key, e.g. training.steps=100. Repeatable."),
]
AcceptChanges = Annotated[
    bool,
    typer.Option("--accept-changes", help="The run was made with other settings: redo in place what they touch."),
]


class ManyNumbers(TyperCommand):
    """A command whose number options take several values: `--alpha 0.1 0.3` is `--alpha 0.1 --alpha 0.3`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Spread the numbers that follow an option that may be repeated, then parse as usual."""
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
    """True for what `float` reads, negative numbers and `nan` included: refusing those is for who knows what they mean."""
    try:
        float(text)
    except ValueError:
        return False
    return True
