"""How a command ends on an error: one paragraph without a traceback, an exit code, and how to continue."""

import contextlib
import errno
import shlex
from collections.abc import Iterator
from pathlib import Path

import typer
from rich.console import Console
from rich.text import Text

from cpo_ray.errors import CpoRayError

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
INTERRUPTED = 130  # what a shell reports for a command ended by Ctrl-C


@contextlib.contextmanager
def resumable(
    name: str, config: Path, run_dir: Path | None, overrides: list[str] | None, **stages: str | None
) -> Iterator[None]:
    """`exit_on_error` for a command that works on a run. After Ctrl-C, print the command that continues the run."""
    try:
        with exit_on_error():
            yield
    except KeyboardInterrupt:
        again = f"cpo-ray {name} {command_tail(config, run_dir, overrides, **stages)}"
        Console(stderr=True, soft_wrap=True).print(Text(f"Stopped. The same command continues the run: {again}"))
        raise typer.Exit(INTERRUPTED) from None


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
    """Print a CpoRayError or a disk error in red, without a traceback, and exit with its code."""
    try:
        yield
    except CpoRayError as error:
        _print_in_red(str(error))
        raise typer.Exit(error.exit_code) from None
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        _print_in_red(f"{error}. Finished work is kept: fix this, and the same command continues.")
        raise typer.Exit(1) from None


def command_tail(config: Path, run_dir: Path | None, overrides: list[str] | None, **stages: str | None) -> str:
    """The arguments after `cpo-ray COMMAND` that name the same run again, quoted for a shell."""
    words = [str(config)]
    words += ["--run-dir", str(run_dir)] if run_dir else []
    for override in overrides or ():
        words += ["--set", override]
    for option, name in (("--from", stages.get("first")), ("--until", stages.get("last"))):
        words += [option, name] if name else []
    return shlex.join(words)


def _print_in_red(message: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(Text(message, style="red"))
