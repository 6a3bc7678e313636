"""Progress for people: one bar per stage on a terminal, plain lines elsewhere. Everything else goes to log files."""

import contextlib
import logging
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

PLAIN_INTERVAL_S = 10.0

console = Console(highlight=False, soft_wrap=True)


class Bar(Protocol):
    """What a stage tells: how much is done and, if it likes, a few words (`loss 2.31`)."""

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Add `amount` to what is done."""

    def moveto(self, completed: float, note: str = "") -> None:
        """Set what is done."""


def say(line: str) -> None:
    """One line for the user."""
    console.print(line)


@contextlib.contextmanager
def bar(title: str, total: float, unit: str) -> Iterator[Bar]:
    """A bar of `total` units, with rate and time left."""
    if console.is_terminal:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description:<14}"),
            BarColumn(bar_width=28),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            _Rate(unit),
            TimeRemainingColumn(compact=True),
            TextColumn("[dim]{task.fields[note]}"),
        )
        with Progress(*columns, console=console, transient=True) as display:
            yield _TerminalBar(display, display.add_task(title, total=total, note=""))
    else:
        plain = _PlainBar(title, total, unit)
        yield plain
        plain.print_line()


@contextlib.contextmanager
def chatter_to(log: Path) -> Iterator[None]:
    """Send Python logging and warnings of third parties to `log` while the stage runs."""
    log.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root = logging.getLogger()
    kept = {
        name: _detach(name, handler)
        for name in ("", "ray", "ray.data", "ray.train", "ray.serve", "vllm", "transformers")
    }
    level = root.level
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.setLevel(level)
        for name, (handlers, propagate) in kept.items():
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = handlers, propagate
        handler.close()
        warnings.resetwarnings()


def _detach(name: str, handler: logging.Handler) -> tuple[list[logging.Handler], bool]:
    logger = logging.getLogger(name)
    kept = (logger.handlers, logger.propagate)
    logger.handlers = [handler] if name == "" else []
    logger.propagate = True
    return kept


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} {self.unit}/s" if speed else f"- {self.unit}/s", style="cyan")


class _TerminalBar:
    def __init__(self, display: Progress, task: "int") -> None:
        self.display, self.task = display, task

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.display.update(self.task, advance=amount, note=note)  # type: ignore[arg-type]

    def moveto(self, completed: float, note: str = "") -> None:
        self.display.update(self.task, completed=completed, note=note)  # type: ignore[arg-type]


class _PlainBar:
    """A line at most every ten seconds, and one at the end."""

    def __init__(self, title: str, total: float, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done, self.note = 0.0, ""
        self.started = self.printed = time.monotonic()

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.moveto(self.done + amount, note)

    def moveto(self, completed: float, note: str = "") -> None:
        self.done, self.note = completed, note
        if time.monotonic() - self.printed >= PLAIN_INTERVAL_S:
            self.print_line()

    def print_line(self) -> None:
        self.printed = time.monotonic()
        rate = self.done / max(self.printed - self.started, 1e-9)
        left = (self.total - self.done) / rate if rate else 0.0
        words = [f"{self.title}: {self.done:.0f}/{self.total:.0f}", f"{rate:.1f} {self.unit}/s"]
        if self.done < self.total:
            words.append(f"{left:.0f} s left")
        sys.stdout.write(", ".join([*words, *([self.note] if self.note else [])]) + "\n")
        sys.stdout.flush()
