"""Collect the metrics of a study's runs into one JSON value, from which the page is written."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, TypedDict

from cpo_ray.artifacts import read_jsonl
from cpo_ray.errors import ConfigError
from cpo_ray.report.study_quote import recipe_of
from cpo_ray.submission.sweeps.grid import Sweep, SweepRun
from cpo_ray.submission.sweeps.outcomes import read_outcome, status_of
from study.decisions import Values
from study.plan import JsonPath, Metric, Picked, Plan


class ArmRecord(TypedDict):
    """An arm: its configuration's fingerprint, without the seed, and the command that runs it."""

    about: str
    fingerprint: str
    recipe: str  # by which a report finds the study's result of its run: report/study_quote.py
    command: str
    settings: dict[str, Any]  # dotted keys that it changes in the base


class RunRecord(TypedDict):
    """One run of the study."""

    arm: str
    seed: int
    status: str
    fingerprint: str
    command: str
    ended: str
    revision: dict[str, Any]
    error: str


class Results(TypedDict):
    """Everything that the page is written from."""

    collected: str  # UTC
    arms: dict[str, ArmRecord]
    runs: list[RunRecord]
    values: dict[str, dict[str, dict[str, float]]]  # metric -> arm/model -> seed -> value


def collect(plan: Plan, sweep: Sweep, root: Path, command: str) -> Results:
    """Read every finished run. command: the one that runs the sweep. A metric without a value in a run is left out.

    Raises ConfigError if a metric's file has nothing at the registered place.
    """
    values: dict[str, dict[str, dict[str, float]]] = {name: {} for name in plan.metrics}
    for run in sweep.runs:
        if status_of(run, sweep, root) == "done":
            for metric, model, value in _measure_run(plan, run, run.root(root)):
                values[metric].setdefault(f"{run.arm}/{model}", {})[str(run.seed)] = value
    arms: dict[str, ArmRecord] = {
        run.arm: {
            "about": plan.arms.get(run.arm, ""),
            "fingerprint": run.arm_fingerprint,
            "recipe": recipe_of(run.config),
            "command": f"{command} --only {run.arm}",
            "settings": run.overrides,
        }
        for run in sweep.first_of_arm()
    }
    return Results(
        collected=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        arms=arms,
        runs=[_describe_run(sweep, run, root) for run in sweep.runs],
        values=values,
    )


def by_seed(results: Results) -> Values:
    """The values with seeds as numbers, which JSON does not have as keys."""
    return {
        metric: {term: {int(seed): value for seed, value in seeds.items()} for term, seeds in terms.items()}
        for metric, terms in results["values"].items()
    }


def _describe_run(sweep: Sweep, run: SweepRun, root: Path) -> RunRecord:
    outcome = read_outcome(run.root(root))
    return RunRecord(
        arm=run.arm,
        seed=run.seed,
        status=status_of(run, sweep, root),
        fingerprint=run.fingerprint,
        command=outcome.command if outcome else "",
        ended=outcome.ended if outcome else "",
        revision=dict(outcome.revision) if outcome else {},
        error=outcome.error if outcome else "",
    )


def _measure_run(plan: Plan, run: SweepRun, folder: Path) -> Iterator[tuple[str, str, float]]:
    """(metric, model, value) for every model of a run."""
    for name, metric in plan.metrics.items():
        for model in run.config.evaluated_models:
            value = read_metric(metric, folder, model)
            if value is not None:
                yield name, model, value
        for alias, picked in plan.picked.items():
            if picked.metric == name and set(picked.models) <= set(run.config.evaluated_models):
                yield name, alias, measure_picked(metric, picked, folder)


def read_metric(metric: Metric, folder: Path, model: str) -> float | None:
    """The metric of one model; None if its file is missing or the number is null. Raises ConfigError for a wrong place."""
    file = folder / metric.file.format(model=model)
    if not file.is_file():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    value, truth = _number(content, metric.value, model, file), _number(content, metric.truth, model, file)
    if value is None or (metric.truth and truth is None):
        return None
    return metric.scale * (abs(value - truth) if truth is not None else value)


def measure_picked(metric: Metric, picked: Picked, folder: Path) -> float:
    """The metric of the model that is best on the other half of the rows: the mean over both halves, odd rows and even rows.

    Ties go to the model that is named first.
    """
    halves = {model: _halves(metric, folder, model) for model in picked.models}
    sign = 1 if metric.better == "lower" else -1
    measured = []
    for chosen_on, measured_on in ((0, 1), (1, 0)):
        best = min(picked.models, key=lambda model, half=chosen_on: sign * halves[model][half])  # type: ignore[misc]
        measured.append(halves[best][measured_on])
    return fmean(measured)


def _halves(metric: Metric, folder: Path, model: str) -> tuple[float, float]:
    """The metric on the rows with even and with odd positions. The truth's value is that of all rows."""
    if metric.rows is None:
        raise ConfigError(f"the metric {metric.label} has no `rows` to divide into halves")
    key = metric.rows.key
    rows: Sequence[Any] = read_jsonl(folder / metric.rows.file.format(model=model))
    file = folder / metric.file.format(model=model)
    truth = _number(json.loads(file.read_text(encoding="utf-8")), metric.truth, model, file)
    means = [fmean(row[key] for row in rows[start::2] if row[key] is not None) for start in (0, 1)]
    even, odd = (metric.scale * (abs(mean - truth) if truth is not None else mean) for mean in means)
    return even, odd


def _number(content: Any, place: JsonPath, model: str, file: Path) -> float | None:
    """The number at a place in a JSON value; None for null and for no place."""
    if not place:
        return None
    node, path = content, [key.format(model=model) if isinstance(key, str) else key for key in place]
    for depth, key in enumerate(path):
        try:
            node = node[key]
        except (KeyError, IndexError, TypeError):
            reached = ".".join(map(str, path[: depth + 1]))
            raise ConfigError(f"{file} has nothing at {reached}, where the preregistration expects a metric") from None
    if node is None:
        return None
    if not isinstance(node, int | float) or not math.isfinite(node):
        raise ConfigError(f"{file}: {'.'.join(map(str, path))} is {node!r}, not a number")
    return float(node)
