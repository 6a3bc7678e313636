"""Progress for people: one bar per stage on a terminal, plain lines elsewhere. Everything else goes to log files."""

import contextlib
import io
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, Self, TextIO, cast

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

PLAIN_INTERVAL_S = 10.0
log = logging.getLogger("cpo_ray")


class _Screen:
    """Where our own lines go: stdout, also while `chatter_to` has pointed that elsewhere."""

    def __init__(self) -> None:
        self.kept: TextIO | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kept or sys.stdout, name)


_screen = _Screen()
console = Console(file=cast("TextIO", _screen), highlight=False, soft_wrap=True)


class Bar(Protocol):
    """What a stage tells: how much is done and, if it likes, a few words (`loss 2.31`)."""

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Add `amount` to what is done."""

    def moveto(self, completed: float, note: str = "") -> None:
        """Set what is done."""


def say(line: str) -> None:
    """One line for the user, in rich's markup: escape what is not ours. Goes to the log too."""
    console.print(line)
    console.file.flush()
    log.info(Text.from_markup(line).plain.strip())


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
        with _PlainBar(title, total, unit) as plain:
            yield plain


@contextlib.contextmanager
def chatter_to(log: Path) -> Iterator[None]:
    """Send whatever third parties print, log or warn, in this process and its children, to `log`; our lines stay."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file, _divert_streams(file), _divert_logging(file):
        yield


@contextlib.contextmanager
def _divert_streams(file: TextIO) -> Iterator[None]:
    """Point file descriptors 1 and 2 at `file`; `console` keeps what 1 was before."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
    if _descriptor(sys.stdout) == 1:
        _screen.kept = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding)
    for descriptor in kept:
        os.dup2(file.fileno(), descriptor)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, copy in kept.items():
            os.dup2(copy, descriptor)
            os.close(copy)
        if _screen.kept is not None:
            _screen.kept.close()
            _screen.kept = None


@contextlib.contextmanager
def _divert_logging(file: TextIO) -> Iterator[None]:
    """Give every logger one handler: `file`."""
    handler = logging.StreamHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root = logging.getLogger()
    kept, level = root.handlers, root.level
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.handlers = kept
        root.setLevel(level)


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (io.UnsupportedOperation, AttributeError):
        return None


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
    """A line about every ten seconds, also while nothing moves, and one at the end."""

    def __init__(self, title: str, total: float, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done, self.note = 0.0, ""
        self.started = self.printed = time.monotonic()
        self.ended = threading.Event()
        self.ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Self:
        self.ticker.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.ended.set()
        self.ticker.join()
        if failure[0] is None:
            self._print_line()

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.moveto(self.done + amount, note)

    def moveto(self, completed: float, note: str = "") -> None:
        self.done, self.note = completed, note
        self._print_if_due()

    def _tick(self) -> None:
        while not self.ended.wait(PLAIN_INTERVAL_S):
            self._print_if_due()

    def _print_if_due(self) -> None:
        if time.monotonic() - self.printed >= PLAIN_INTERVAL_S:
            self._print_line()

    def _print_line(self) -> None:
        self.printed = time.monotonic()
        elapsed = max(self.printed - self.started, 1e-9)
        words = [f"{self.title}: {self.done:.0f}/{self.total:.0f}", *self._pace(elapsed)]
        say(escape("  " + ", ".join([*words, *([self.note] if self.note else [])])))

    def _pace(self, elapsed: float) -> list[str]:
        if not self.done:
            return [f"{elapsed:.0f} s so far"]
        rate = self.done / elapsed
        pace = f"{rate:.1f} {self.unit}/s" if rate >= 0.1 else f"{1 / rate:.0f} s each"
        left = (self.total - self.done) / rate
        return [pace, f"{left:.0f} s left"] if left > 0 else [pace]
