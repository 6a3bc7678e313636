"""The text metrics as HTML: what the answers of every model are like, beside the truth's, and against continued MLE."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from cpo_ray.evaluation.text_scores import TEXT_METRICS, TextMetric
from cpo_ray.report.findings import signed
from cpo_ray.report.markup import DASH, Cell, format_number, grid, missing_notice

MeasuredRow = Mapping[str, Any]  # a findings.TableRow whose `texts` are not None

INTERVALS = """Intervals of 95% are over prompts alone: they do not say how far a value would move with another training
seed."""
NOTE = f"""<p class="note">Tokens are those of the run's tokenizer; the truth is cut where an answer would be.
Closer to the truth is better, whatever the direction. {INTERVALS} Differences are paired on the same prompts.</p>"""


def text_sentence(table: Sequence[Mapping[str, Any]], decoding: str | None) -> str | None:
    """Say how much the CPO model repeats itself beside continued MLE and the truth; None if that was not measured.

    Always the model `cpo` of the first run and always rep-4, so that nothing is picked.
    """
    rows = [row for row in measured_rows(table, decoding) if row["model"] == "cpo"]
    if not rows:
        return None
    score = rows[0]["texts"]["metrics"]["rep_4"]
    ours, truth, difference = score["answers"], score["truth"], score["to_baseline"]
    if difference is None or difference["low"] is None or truth["value"] is None:
        return None
    change, low, high = (signed(100 * difference[key]) for key in ("value", "low", "high"))
    return (
        f"Without a judge: {ours['value']:.1%} of the 4-grams in an answer of {rows[0]['label']} repeat earlier ones "
        f"({truth['value']:.1%} in the truth): {change} points against continued MLE on the same {difference['n']} prompts "
        f"(95% interval {low} to {high}, over prompts alone)."
    )


def measured_rows(table: Sequence[Mapping[str, Any]], decoding: str | None) -> list[MeasuredRow]:
    """The rows of a decoding that have text metrics."""
    return [row for row in table if row["decoding"] == decoding and row["texts"]]


def render_texts(report: Mapping[str, Any]) -> str:
    """Render the text metrics, two tables per decoding: values beside the truth's, and differences to continued MLE."""
    parts = []
    for decoding in report["decodings"]:
        rows = measured_rows(report["table"], decoding)
        if rows:
            parts.append(
                f"<h3>{escape(decoding)} decoding</h3>" + _values(rows, decoding) + _differences(rows, decoding)
            )
    if not parts:
        return missing_notice("No text metrics: the stage text_metrics has not run.")
    return "".join(parts) + NOTE + _definitions()


def _values(rows: Sequence[MeasuredRow], decoding: str) -> str:
    truths = _truths(rows)
    lines: list[list[Cell]] = [
        [
            _name(metric),
            *(_cell(truth["texts"]["metrics"][key]["truth"], metric) for _, truth in truths),
            *(_cell(row["texts"]["metrics"][key]["answers"], metric) for row in rows),
        ]
        for key, metric in _metrics_of(rows).items()
    ]
    heads = ["metric", *(label for label, _ in truths), *(row["label"] for row in rows)]
    return f'<div class="texts">{grid(heads, lines, f"Text metrics, {decoding} decoding")}</div>'


def _truths(rows: Sequence[MeasuredRow]) -> list[tuple[str, MeasuredRow]]:
    """(head, a row that has the truth's values), one for each run whose truth has other values."""
    found: dict[str, tuple[str, MeasuredRow]] = {}  # the values -> the first run with them
    for row in rows:
        truths = {key: score["truth"] and score["truth"]["value"] for key, score in row["texts"]["metrics"].items()}
        found.setdefault(repr(truths), (row["run"], row))
    return [("truth" if len(found) == 1 else f"{run}: truth", row) for run, row in found.values()]


def _differences(rows: Sequence[MeasuredRow], decoding: str) -> str:
    compared = [row for row in rows if row["texts"]["metrics"]["rep_4"]["to_baseline"] is not None]
    if not compared:
        return ""
    lines: list[list[Cell]] = [
        [_name(metric), *(_cell(row["texts"]["metrics"][key]["to_baseline"], metric, sign="+") for row in compared)]
        for key, metric in _metrics_of(compared).items()
    ]
    heads = ["minus continued MLE", *(row["label"] for row in compared)]
    return f'<div class="texts">{grid(heads, lines, f"Text metrics minus those of MLE, {decoding} decoding")}</div>'


def _metrics_of(rows: Sequence[MeasuredRow]) -> dict[str, TextMetric]:
    """The metrics that every row has, in the order of TEXT_METRICS."""
    return {key: metric for key, metric in TEXT_METRICS.items() if all(key in row["texts"]["metrics"] for row in rows)}


def _name(metric: TextMetric) -> str:
    return f'<span title="{escape(metric.about)}">{escape(metric.label)}</span>'


def _cell(estimate: Mapping[str, Any] | None, metric: TextMetric, sign: str = "") -> str:
    """A value and, below it, its interval. A difference whose interval excludes 0 is bold."""
    if estimate is None or estimate["value"] is None:
        return DASH
    form = sign + metric.form
    value = format_number(estimate["value"], form)
    if estimate["low"] is None:
        return value
    ends = " to ".join(format_number(estimate[end], form) for end in ("low", "high"))
    clear = sign and (estimate["low"] > 0 or estimate["high"] < 0)
    return f"{f'<b>{value}</b>' if clear else value}<br><small>{ends}</small>"


def _definitions() -> str:
    items = "".join(
        f"<dt>{escape(metric.label)}</dt><dd>{escape(metric.about)}</dd>" for metric in TEXT_METRICS.values()
    )
    return f'<details><summary>What each metric is</summary><dl class="definitions">{items}</dl></details>'
