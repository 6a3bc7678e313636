"""What a command tells people where it cannot go on: one paragraph, no traceback, and how to go on."""

import contextlib
import errno
import shlex
from collections.abc import Iterator
from pathlib import Path

import typer
from rich.console import Console
from rich.text import Text

from cpo_ray.errors import CpoRayError

DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
INTERRUPTED = 130  # what a shell reports for a command ended by Ctrl-C


@contextlib.contextmanager
def plainly(
    name: str, config: Path, run_dir: Path | None, overrides: list[str] | None, **stages: str | None
) -> Iterator[None]:
    """Tell what the user can act on in one paragraph, without a traceback; tell how to go on after Ctrl-C."""
    try:
        with errors_in_red():
            yield
    except KeyboardInterrupt:
        again = f"cpo-ray {name} {command_tail(config, run_dir, overrides, **stages)}"
        Console(stderr=True, soft_wrap=True).print(Text(f"Stopped. The same command continues the run: {again}"))
        raise typer.Exit(INTERRUPTED) from None


@contextlib.contextmanager
def errors_in_red() -> Iterator[None]:
    """Tell an error of ours, or of the disk, in red, and end with its exit code."""
    try:
        yield
    except CpoRayError as error:
        _say_in_red(str(error))
        raise typer.Exit(error.exit_code) from None
    except OSError as error:
        if error.errno not in DISK_TROUBLE:
            raise
        _say_in_red(f"{error}. What is finished is kept: once this is mended, the same command continues.")
        raise typer.Exit(1) from None


def command_tail(config: Path, run_dir: Path | None, overrides: list[str] | None, **stages: str | None) -> str:
    """What follows `cpo-ray COMMAND` to name the same run again, quoted for a shell."""
    words = [str(config)]
    words += ["--run-dir", str(run_dir)] if run_dir else []
    for override in overrides or ():
        words += ["--set", override]
    for option, name in (("--from", stages.get("first")), ("--until", stages.get("last"))):
        words += [option, name] if name else []
    return shlex.join(words)


def _say_in_red(words: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(Text(words, style="red"))
