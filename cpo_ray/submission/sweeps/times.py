"""How long the rest of a sweep takes: by the finished runs where they say it, otherwise by `cpo-ray plan`'s estimate."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from cpo_ray.submission.sweeps.grid import SweepRun
from cpo_ray.submission.sweeps.outcomes import Outcome
from cpo_ray.submission.sweeps.sharing import StageTasks

Planner = Callable[[SweepRun], Mapping[str, float]]  # stage -> seconds, for the stages that can be estimated


@dataclass(frozen=True)
class StageEstimate:
    """Expected seconds of one stage. origin: `the same arm`, `other arms`, `plan`, or `unknown` with seconds 0."""

    stage: str
    seconds: float
    origin: str


class Times:
    """Times of stages in the finished runs of a sweep. Only stages that made something count: shared ones take no time."""

    def __init__(self, finished: Iterable[tuple[SweepRun, Outcome]], planner: Planner) -> None:
        self.by_arm: dict[tuple[str, str], list[float]] = {}
        self.by_stage: dict[str, list[float]] = {}
        self.planner = planner
        self.plans: dict[str, Mapping[str, float]] = {}
        for run, outcome in finished:
            for stage, record in outcome.stages.items():
                if record.made:
                    self.by_arm.setdefault((run.arm, stage), []).append(record.seconds)
                    self.by_stage.setdefault(stage, []).append(record.seconds)

    def estimate(self, run: SweepRun, work: Sequence[StageTasks]) -> list[StageEstimate]:
        """One estimate per stage that makes something."""
        return [self._estimate_stage(run, step.stage) for step in work if step.makes]

    def _estimate_stage(self, run: SweepRun, stage: str) -> StageEstimate:
        if (run.arm, stage) in self.by_arm:
            return StageEstimate(stage, fmean(self.by_arm[run.arm, stage]), "the same arm")
        if stage in self.by_stage:
            return StageEstimate(stage, fmean(self.by_stage[stage]), "other arms")
        planned = self._plan(run).get(stage)
        return StageEstimate(stage, planned or 0.0, "unknown" if planned is None else "plan")

    def _plan(self, run: SweepRun) -> Mapping[str, float]:
        """Stage -> seconds, planned once per arm."""
        if run.arm not in self.plans:
            self.plans[run.arm] = self.planner(run)
        return self.plans[run.arm]


def format_seconds(seconds: float) -> str:
    """`40 s`, `12 min` or `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
