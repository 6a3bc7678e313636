"""The results in the layout of the paper: a column per method and alpha, a table per task, base model and decoding.

Tables 1 to 3 are win rates and table 4 is MAUVE (its row is labelled WinRate); figure 1 is a reward model's preference.
Text metrics, which the paper does not have, are laid out alike. Every rate has its interval.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypedDict

from cpo_ray.evaluation.resampling import Estimate
from cpo_ray.evaluation.text_scores import TextScore
from cpo_ray.report.fairness import SELECTED_PROMPTS
from cpo_ray.report.findings import DifferenceRow, TableRow
from cpo_ray.report.method import PLAIN
from cpo_ray.report.run_contents import RunContents, all_decodings

Metric = Literal["win_rate", "reward_rate", "mauve", "rep_4", "distinct_2", "similarity"]
LAYOUTS: dict[Metric, str] = {
    "win_rate": "tables 1 to 3",
    "reward_rate": "tables, with the measure of its figure 1",
    "mauve": "table 4",
    "rep_4": "tables, with a text metric",
    "distinct_2": "tables, with a text metric",
    "similarity": "tables, with a text metric",
}
ENDS = {"win_rate": ("low", "high"), "reward_rate": ("reward_low", "reward_high")}
FIRST = (PLAIN, "PSS", "DPO")  # the paper's order; other methods follow in the order of the runs
REFERENCE = "reference"  # not in the paper's tables


class PaperColumn(TypedDict):
    """One model. `alpha` is None for a method without merged models."""

    run: str
    model: str
    method: str
    alpha: float | None
    value: float
    low: float | None
    high: float | None
    deviation: float | None
    difference: DifferenceRow | None  # in win rate
    to_baseline: Estimate | None  # of a text metric


class PaperTable(TypedDict):
    """One table: its columns in order, grouped by method."""

    metric: Metric
    layout: str  # the tables of the paper with this layout
    source: str
    base: str
    decoding: str
    judges: list[str]
    truth: float | None  # the value of the truth's texts
    columns: list[PaperColumn]
    left_out: list[str]  # MLE models of other runs with the same settings as a model that is shown


def paper_tables(runs: Sequence[RunContents], rows: Sequence[TableRow]) -> list[PaperTable]:
    """Return every table that the runs have numbers for: win rates first, MAUVE last."""
    settings = list(dict.fromkeys(run.setting for run in runs))
    return [
        table
        for metric in LAYOUTS
        for setting in settings
        for decoding in all_decodings(runs)
        for table in _table(metric, decoding, [run for run in runs if run.setting == setting], rows)
    ]


def _table(
    metric: Metric, decoding: str, runs: Sequence[RunContents], rows: Sequence[TableRow]
) -> Iterator[PaperTable]:
    shown: list[TableRow] = []
    left_out: list[str] = []
    seen: set[str] = set()  # settings of MLE models
    for run in runs:
        for row in rows:
            if (row["run"], row["decoding"]) != (run.label, decoding) or _estimate(metric, row) is None:
                continue
            if row["model"] == REFERENCE:
                continue
            settings = _mle_settings(run) if row["method"] == PLAIN else ""
            if settings and settings in seen:
                left_out.append(row["label"])
            else:
                shown.append(row)
                seen.add(settings)
    if shown:
        source, base = runs[0].setting
        yield PaperTable(
            metric=metric,
            layout=LAYOUTS[metric],
            source=source,
            base=base,
            decoding=decoding,
            judges=sorted({row["judge"] for row in shown if row["judge"]}) if metric == "win_rate" else [],
            truth=_truth(metric, shown[0]),
            columns=[_column(metric, row, shown) for row in sorted(shown, key=lambda row: _order(row, runs))],
            left_out=left_out,
        )


def _column(metric: Metric, row: TableRow, shown: Sequence[TableRow]) -> PaperColumn:
    merged = any(other["run"] == row["run"] and other["model"].startswith("merged-") for other in shown)
    value, low, high = _estimate(metric, row) or (float("nan"), None, None)
    text = _text_score(metric, row)
    return PaperColumn(
        run=row["run"],
        model=row["model"],
        method=row["method"],
        alpha=row["alpha"] if merged and row["model"] != "mle" else None,
        value=value,
        low=low,
        high=high,
        deviation=row["mauve_deviation"] if metric == "mauve" else None,
        difference=row["difference_to_mle"] if metric == "win_rate" else None,
        to_baseline=text["to_baseline"] if text else None,
    )


def _estimate(metric: Metric, row: TableRow) -> tuple[float, float | None, float | None] | None:
    """A row's value with its interval, or None."""
    text = _text_score(metric, row)
    if text is not None:
        value, low, high = (text["answers"][key] for key in ("value", "low", "high"))
    elif metric in ("win_rate", "reward_rate", "mauve"):
        value = row[metric]
        low, high = (row[key] for key in ENDS[metric]) if metric in ENDS else (None, None)  # type: ignore[literal-required]
    else:
        return None
    return None if value is None else (value, low, high)


def _truth(metric: Metric, row: TableRow) -> float | None:
    text = _text_score(metric, row)
    return text["truth"]["value"] if text and text["truth"] else None


def _text_score(metric: Metric, row: TableRow) -> TextScore | None:
    return row["texts"]["metrics"].get(metric) if row["texts"] else None


def _order(row: TableRow, runs: Sequence[RunContents]) -> tuple[int, int, float]:
    first = FIRST.index(row["method"]) if row["method"] in FIRST else len(FIRST)
    place = next(number for number, run in enumerate(runs) if run.label == row["run"])
    return first, place, -1.0 if row["alpha"] is None else row["alpha"]


def _mle_settings(run: RunContents) -> str:
    """Return the settings of an MLE model as text. Equal settings give equal models, up to rounding."""
    parts: dict[str, Any] = {
        key: run.config.get(key) for key in ("seed", "data", "model", "reference", "training", "mle", "tuning")
    }
    made_from = run.manifests.get("models/mle", {}).get("inputs", {}).get("reads", {})
    parts["prompts"] = made_from.get(SELECTED_PROMPTS)
    return json.dumps(parts, sort_keys=True)
