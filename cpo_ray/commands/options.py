"""What the command line's parser does not know by itself."""

from collections.abc import Iterable
from typing import Any

from typer.core import TyperCommand


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
