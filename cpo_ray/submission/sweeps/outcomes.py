"""What became of a run of a sweep, in its `outcome.json`: finished or failed, with its command, its times and its commit."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from cpo_ray.artifacts import read_jsonl, write_json
from cpo_ray.errors import ArtifactError
from cpo_ray.submission.sweeps.grid import Sweep, SweepRun

OUTCOME = "outcome.json"
EVENTS = Path("logs") / "events.jsonl"

Status = Literal["done", "failed", "begun", "waiting"]
Event = Mapping[str, Any]  # a line of logs/events.jsonl


@dataclass(frozen=True)
class StageRecord:
    """One stage of a finished run: its seconds, and its artifacts by how the run got them (`made`, `shared`, `reused`)."""

    seconds: float
    artifacts: dict[str, str]

    @property
    def made(self) -> list[str]:
        """The artifacts that this run made itself."""
        return [name for name, how in self.artifacts.items() if how == "made"]


@dataclass(frozen=True)
class Outcome:
    """The end of a run's last attempt."""

    result: Literal["done", "failed"]
    fingerprint: str  # of the run's configuration
    until: str | None
    command: str
    ended: str  # UTC
    revision: Mapping[str, Any]  # git: commit, whether files were modified, and the preregistration's hash and commit
    error: str = ""
    exit_code: int = 0
    stages: dict[str, StageRecord] = field(default_factory=dict)


def write_outcome(root: Path, outcome: Outcome) -> None:
    """Write a run's outcome atomically."""
    write_json(root / OUTCOME, asdict(outcome))


def read_outcome(root: Path) -> Outcome | None:
    """The outcome of the run in `root`; None if it has not ended. Raises ArtifactError for a damaged file."""
    file = root / OUTCOME
    if not file.is_file():
        return None
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        stages = {name: StageRecord(**record) for name, record in fields.pop("stages").items()}
        return Outcome(**fields, stages=stages)
    except (json.JSONDecodeError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(
            f"{file} is not an outcome ({error}). Delete it, and the sweep continues that run."
        ) from None


def status_of(run: SweepRun, sweep: Sweep, sweep_root: Path) -> Status:
    """Where a run stands. One that ended under another configuration, or before the sweep's last stage, has only begun."""
    root = run.root(sweep_root)
    outcome = read_outcome(root)
    if outcome is not None and (outcome.fingerprint, outcome.until) == (run.fingerprint, sweep.file.until):
        return outcome.result
    return "begun" if (root / "config.json").is_file() else "waiting"


def read_stages(root: Path) -> dict[str, StageRecord]:
    """Stage -> what all attempts of a run recorded of it. An artifact that one attempt made counts as made."""
    file = root / EVENTS
    return summarize_events(read_jsonl(file) if file.is_file() else [])


def summarize_events(events: Iterable[Event]) -> dict[str, StageRecord]:
    """Stage -> the longest time that it took to the end, and its artifacts."""
    seconds: dict[str, float] = {}
    artifacts: dict[str, dict[str, str]] = {}
    for event in events:
        stage = event.get("stage", "")
        if "artifact" in event:
            known = artifacts.setdefault(stage, {})
            if known.get(event["artifact"]) != "made":
                known[event["artifact"]] = event["how"]
        elif event.get("outcome") == "done":
            seconds[stage] = max(seconds.get(stage, 0.0), event["seconds"])
    return {stage: StageRecord(spent, artifacts.get(stage, {})) for stage, spent in seconds.items()}
