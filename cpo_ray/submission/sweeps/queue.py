"""The queue: every run in a process of its own, one after another. Kill it anywhere; the same command continues."""

import contextlib
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import yaml
from rich.markup import escape

from cpo_ray.artifacts import lock_run, write_atomically
from cpo_ray.errors import Preempted, RunInUseError
from cpo_ray.monitoring.console import say
from cpo_ray.run_directory import refuse_changes
from cpo_ray.submission.sweeps.grid import Sweep, SweepRun
from cpo_ray.submission.sweeps.outcomes import EVENTS, Event, Outcome, read_stages, status_of, write_outcome

PROGRAM = (sys.executable, "-c", "from cpo_ray.cli import main; main()")
POLL_S = 0.3
STOPPED = {130, 143, -signal.SIGINT, -signal.SIGTERM}  # exit codes of a run that was asked to stop
ERROR_LINES = 20


@dataclass(frozen=True)
class Queue:
    """How the runs of a sweep are started.

    revision: returns the commit, asked when a run starts, for its outcome. program: the command line before `run`, another one
    in tests.
    """

    sweep: Sweep
    root: Path
    retry_failed: bool = False
    accept_changes: bool = False
    revision: Callable[[], Mapping[str, Any]] = dict
    program: Sequence[str] = PROGRAM

    def perform(self, runs: Sequence[SweepRun]) -> None:
        """Perform the runs that are neither finished nor failed; with `retry_failed`, failed ones too.

        The caller holds the lock of the sweep's directory. Raises RunMismatchError before the first run starts if one was made
        with another configuration, Preempted on SIGTERM or if a run was asked to stop. A failed run does not stop the others.
        """
        if not self.accept_changes:
            for run in self.sweep.runs:
                refuse_changes(run.root(self.root), run.config)
        settled = {"done"} if self.retry_failed else {"done", "failed"}
        todo = [run for run in runs if status_of(run, self.sweep, self.root) not in settled]
        with _sigterm_as_exception():
            for number, run in enumerate(todo, 1):
                self._perform_one(run, f"{number}/{len(todo)}")

    def command(self, run: SweepRun) -> list[str]:
        """The arguments of `cpo-ray` that perform a run, also without the queue."""
        words = ["run", str(_config_file(run, self.root)), "--run-dir", str(run.root(self.root))]
        words += ["--until", self.sweep.file.until] if self.sweep.file.until else []
        return words + (["--accept-changes"] if self.accept_changes else [])

    def _perform_one(self, run: SweepRun, position: str) -> None:
        root, command = run.root(self.root), self.command(run)
        _wait_until_free(root, run.label)
        _write_config(run, self.root)
        revision = self.revision()
        say(f"[bold]\\[{position}] {escape(run.label)}[/]: [dim]cpo-ray {escape(shlex.join(command))}[/]")
        code, error = self._run_process(command, root)
        if code in STOPPED:
            raise Preempted(f"the run {run.label} was asked to stop; the same command continues the sweep")
        outcome = Outcome(
            result="failed" if code else "done",
            fingerprint=run.fingerprint,
            until=self.sweep.file.until,
            command=f"cpo-ray {shlex.join(command)}",
            ended=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            revision=revision,
            error=error if code else "",
            exit_code=code,
            stages=read_stages(root),
        )
        write_outcome(root, outcome)
        if code:
            say(f"  [red]failed[/] (exit code {code}): {escape(error)}")

    def _run_process(self, command: Sequence[str], root: Path) -> tuple[int, str]:
        """Start a run, print a line for each stage that ends, and return its exit code and the end of its error output.

        The run has a session of its own, so Ctrl-C reaches it once: from here.
        """
        logs, events = root / "logs", root / EVENTS
        logs.mkdir(parents=True, exist_ok=True)
        begin = events.stat().st_size if events.is_file() else 0
        with (logs / "console.log").open("a") as output, (logs / "errors.log").open("w") as errors:
            process = subprocess.Popen(  # noqa: S603 - our own command line, without a shell
                [*self.program, *command], stdout=output, stderr=errors, start_new_session=True
            )
            try:
                for stage in _finished_stages(process, events, begin):
                    say(f"  {escape(stage)}")
            except BaseException as stop:
                process.send_signal(signal.SIGINT if isinstance(stop, KeyboardInterrupt) else signal.SIGTERM)
                process.wait()
                raise
        lines = (logs / "errors.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        error = "\n".join(lines[-ERROR_LINES:])
        return process.returncode, error or f"no message; see {logs / 'console.log'}"


def _wait_until_free(root: Path, label: str) -> None:
    """Wait for the end of a run that was started before and is still in progress, for instance by a sweep that was killed."""
    waiting = False
    while True:
        try:
            with lock_run(root):
                return
        except RunInUseError as error:
            if not waiting:
                say(f"[yellow]{escape(label)}: waits[/] {escape(str(error).partition('. ')[0])}")
            waiting = True
            time.sleep(POLL_S)


def _config_file(run: SweepRun, sweep_root: Path) -> Path:
    return run.root(sweep_root) / "config.yaml"


def _write_config(run: SweepRun, sweep_root: Path) -> None:
    """Write the run's whole configuration, which shares its artifacts with the sweep unless it already names a store."""
    tree = run.config.model_dump(mode="json")
    if tree["cluster"]["artifact_store"] is None:
        tree["cluster"]["artifact_store"] = str((sweep_root / "store").resolve())
    with write_atomically(_config_file(run, sweep_root)) as temporary:
        temporary.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _finished_stages(process: "subprocess.Popen[bytes]", events: Path, begin: int) -> Iterator[str]:
    """A line per stage that ends while the process runs: its seconds, and what it made and took from other runs."""
    how: dict[str, list[str]] = {}
    for event in _follow(process, events, begin):
        if "artifact" in event:
            how.setdefault(event["how"], []).append(event["artifact"])
        elif event.get("outcome") == "done":
            parts = [f"{word} {', '.join(names)}" for word, names in how.items() if word != "reused"]
            yield f"{event['stage']:<12} {event['seconds']:>6.0f} s  {'; '.join(parts) or 'nothing new'}"
            how = {}


def _follow(process: "subprocess.Popen[bytes]", file: Path, position: int) -> Iterator[Event]:
    """The lines that are added to a JSONL file after `position` until the process has ended."""
    while True:
        ended = process.poll() is not None
        if file.is_file():
            with file.open("rb") as lines:
                lines.seek(position)
                added = lines.read()
            complete = added[: added.rfind(b"\n") + 1]
            position += len(complete)
            yield from map(json.loads, complete.splitlines())
        if ended:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(POLL_S)


@contextlib.contextmanager
def _sigterm_as_exception() -> Iterator[None]:
    """Raise Preempted in this thread on SIGTERM."""

    def stop(_signal: int, _frame: FrameType | None) -> NoReturn:
        raise Preempted("stop requested; the same command continues the sweep")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
