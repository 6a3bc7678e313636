"""Console output: one progress bar per stage on a terminal, plain lines otherwise. Other output goes to log files."""

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
LEAST_LEFT_S = 1.5  # less is not worth a line
log = logging.getLogger("cpo_ray")


class _UserOutput:
    """The stream of our own lines: stdout, or the original stdout while `redirect_output` redirects it."""

    def __init__(self) -> None:
        self.original: TextIO | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original or sys.stdout, name)


_output = _UserOutput()
console = Console(file=cast("TextIO", _output), highlight=False, soft_wrap=True)


class Bar(Protocol):
    """A progress bar. note: a few words beside it, e.g. `loss 2.31`."""

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Add `amount` to the completed units."""

    def set_completed(self, completed: float, note: str = "") -> None:
        """Set the completed units."""


def say(line: str, **fields: str) -> None:
    """Print one line for the user, and log it. The line is rich markup: escape any text that is not ours.

    fields: what the line says, for programs that read `logs/events.jsonl`.
    """
    console.print(line)
    console.file.flush()
    log.info(Text.from_markup(line).plain.strip(), extra={"fields": fields} if fields else None)


def set_quiet(quiet: bool) -> None:
    """Print nothing more but errors and results; lines still go to the log files."""
    console.quiet = quiet


@contextlib.contextmanager
def progress_bar(title: str, total: float, unit: str) -> Iterator[Bar]:
    """Show a bar of `total` units, with rate and time left.

    If `total` is unknown (0) or rounds to 0.0, only what is done is shown, with its rate: no bar, and no time left.
    """
    known = _format_amount(total) is not None
    if console.is_terminal:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description:<14}"),
            *([BarColumn(bar_width=28)] if known else []),
            _Amount(unit),
            _Rate(unit),
            *([_TimeLeft(compact=True)] if known else []),
            TextColumn("[dim]{task.fields[note]}"),
        )
        with Progress(*columns, console=console, transient=True) as display:
            yield _TerminalBar(display, display.add_task(title, total=total if known else None, note=""))
    else:
        with _PlainBar(title, total, unit) as plain:
            yield plain


@contextlib.contextmanager
def redirect_output(path: Path) -> Iterator[None]:
    """Append what libraries print, log or warn, in this process and its children, to `path`. `console` still prints."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file, _redirect_streams(file), _redirect_logging(file):
        yield


@contextlib.contextmanager
def _redirect_streams(file: TextIO) -> Iterator[None]:
    """Redirect file descriptors 1 and 2 to `file`; `console` keeps the original descriptor 1."""
    sys.stdout.flush()
    sys.stderr.flush()
    originals = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
    if _descriptor(sys.stdout) == 1:
        _output.original = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding)
    for descriptor in originals:
        os.dup2(file.fileno(), descriptor)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, copy in originals.items():
            os.dup2(copy, descriptor)
            os.close(copy)
        if _output.original is not None:
            _output.original.close()
            _output.original = None


@contextlib.contextmanager
def _redirect_logging(file: TextIO) -> Iterator[None]:
    """Make `file` the only handler of the root logger, and log warnings."""
    handler = logging.StreamHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.handlers = handlers
        root.setLevel(level)


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (io.UnsupportedOperation, AttributeError):
        return None


def _format_amount(amount: float) -> str | None:
    """The amount, with a decimal if it is a small fraction; None if it rounds to nothing."""
    text = f"{amount:.0f}" if amount >= 10 or amount == int(amount) else f"{amount:.1f}"
    return None if text in ("0", "0.0") else text


def _format_progress(completed: float, total: float | None, unit: str) -> str | None:
    """`4/10`; `4 rows` without a total; None if there is nothing to show."""
    done, whole = _format_amount(completed), _format_amount(total or 0)
    return f"{done or 0}/{whole}" if whole else done and f"{done} {unit}"


class _Amount(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(_format_progress(task.completed, task.total, self.unit) or "")


class _TimeLeft(TimeRemainingColumn):
    """Without `0:00` shortly before the end."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.time_remaining != 0 else Text("")


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

    def set_completed(self, completed: float, note: str = "") -> None:
        self.display.update(self.task, completed=completed, note=note)  # type: ignore[arg-type]


class _PlainBar:
    """Prints a line every ten seconds, also without progress, and one at the end if there is something to show."""

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
        if failure[0] is None and _format_progress(self.done, self.total, self.unit):
            self._print_line()

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.set_completed(self.done + amount, note)

    def set_completed(self, completed: float, note: str = "") -> None:
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
        parts = [_format_progress(self.done, self.total, self.unit), *self._pace(elapsed), self.note]
        say(escape(f"  {self.title}: " + ", ".join(filter(None, parts))))

    def _pace(self, elapsed: float) -> list[str]:
        if not self.done:
            return [f"{elapsed:.0f} s so far"]
        rate = self.done / elapsed
        pace = f"{rate:.1f} {self.unit}/s" if rate >= 0.1 else f"{1 / rate:.0f} s each"
        left = (self.total - self.done) / rate
        return [pace, f"{left:.0f} s left"] if left >= LEAST_LEFT_S and _format_amount(self.total) else [pace]
