"""Which artifacts the runs of a sweep have in common, before they exist: from the records of the stages."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cpo_ray.artifacts import MANIFEST, SELECTED, canonical
from cpo_ray.config import RunConfig
from cpo_ray.stages import STAGES
from cpo_ray.stages.record import recipes
from cpo_ray.submission.sweeps.grid import RunKey, SweepRun


@dataclass(frozen=True)
class StageTasks:
    """What one stage of a run will do: the artifacts to make, and those to take from other runs of the sweep."""

    stage: str
    makes: tuple[str, ...]
    shares: tuple[str, ...]


def artifact_keys(config: RunConfig) -> dict[str, str]:
    """Artifact -> a hash of everything that the stages' records say it depends on.

    Two runs with equal keys share the artifact, unless files outside of the configuration differ. The reverse is not certain:
    `models/mle` depends on which rows become groups, and other negatives may leave out the same rows.
    """
    keys: dict[str, str] = {}
    for stage in STAGES.values():
        for name, recipe in recipes(stage, config).items():
            reads = {}
            for source in (*recipe.required, *recipe.optional):
                part = recipe.parts.get(source)
                reads[source] = keys.get(source, "") if part is None else _part_key(config, keys, part)
            inputs = [name, dict(recipe.values), reads, _outside_of_the_record(name, config)]
            keys[name] = hashlib.sha256(canonical(inputs).encode()).hexdigest()
    return keys


def plan_work(
    runs: Iterable[SweepRun], wanted: Iterable[SweepRun], sweep_root: Path, stages: Iterable[str]
) -> dict[RunKey, list[StageTasks]]:
    """Run -> its stages that have something to do, for the `wanted` runs in their order.

    runs: all of the sweep; what their directories hold already is not made again. stages: those that the sweep performs.
    """
    stages = list(stages)
    known: set[str] = set()
    keys = {run.key: artifact_keys(run.config) for run in runs}
    for run in runs:
        known |= {key for name, key in keys[run.key].items() if _exists(run, sweep_root, name)}
    work = {}
    for run in wanted:
        own, steps = keys[run.key], []
        for stage in stages:
            missing = [n for n in recipes(STAGES[stage], run.config) if not _exists(run, sweep_root, n)]
            makes = tuple(name for name in missing if own[name] not in known)
            if missing:
                steps.append(StageTasks(stage, makes, tuple(name for name in missing if name not in makes)))
            known |= {own[name] for name in makes}
        work[run.key] = steps
    return work


def _exists(run: SweepRun, sweep_root: Path, name: str) -> bool:
    return (run.root(sweep_root) / name / MANIFEST).is_file()


def _part_key(config: RunConfig, keys: dict[str, str], part: str) -> str:
    """The key of a folder of an artifact. The examples that groups are made of do not depend on the negatives."""
    selection = [config.sampling.rows, config.training.validation_rows] if part == SELECTED else []
    return canonical([part, keys["data"], selection])


def _outside_of_the_record(name: str, config: RunConfig) -> float | None:
    """The learning rate that stage `mle` adds to the inputs of an untuned model."""
    tuned = bool(config.tuning.learning_rates)
    return config.mle_training.learning_rate if name == "models/mle" and not tuned else None
