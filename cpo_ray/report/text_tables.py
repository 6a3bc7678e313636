"""The text metrics as HTML: what the answers of every model are like, beside the truth's, and against continued MLE."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from cpo_ray.evaluation.text_scores import TEXT_METRICS, TextMetric
from cpo_ray.report.markup import DASH, Cell, format_number, grid, missing_notice

MeasuredRow = Mapping[str, Any]  # a findings.TableRow whose `texts` are not None

INTERVALS = """Intervals of 95% are over prompts alone: they do not say how far a value would move with another training
seed."""
NOTE = f"""<p class="note">Tokens are those of the run's tokenizer; the truth is cut where an answer would be.
Closer to the truth is better, whatever the direction. {INTERVALS} Differences are paired on the same prompts.</p>"""


def measured_rows(table: Sequence[Mapping[str, Any]], decoding: str | None) -> list[MeasuredRow]:
    """The rows of a decoding that have text metrics."""
    return [row for row in table if row["decoding"] == decoding and row["texts"]]


def render_texts(report: Mapping[str, Any]) -> str:
    """Render the text metrics of every decoding: a few in short tables, and all others in one that can be opened."""
    parts = []
    for decoding in report["decodings"]:
        rows = measured_rows(report["table"], decoding)
        if rows:
            short = {key: metric for key, metric in metrics_of(rows).items() if metric.short}
            others = {key: metric for key, metric in metrics_of(rows).items() if not metric.short}
            parts.append(f"<h3>{escape(decoding)} decoding</h3>{_tables(rows, short, decoding)}")
            if others:
                more = f"The other text metrics, {escape(decoding)} decoding"
                parts.append(f"<details><summary>{more}</summary>{_tables(rows, others, decoding, 'other ')}</details>")
    if not parts:
        return missing_notice("No text metrics: the stage text_metrics has not run.")
    return "".join(parts) + NOTE + _definitions(metrics_of([row for row in report["table"] if row["texts"]]))


def metrics_of(rows: Sequence[MeasuredRow]) -> dict[str, TextMetric]:
    """The metrics that every row has, in the order of TEXT_METRICS."""
    return {key: metric for key, metric in TEXT_METRICS.items() if all(key in row["texts"]["metrics"] for row in rows)}


def _tables(rows: Sequence[MeasuredRow], metrics: Mapping[str, TextMetric], decoding: str, which: str = "") -> str:
    """The values of some metrics, and the differences to continued MLE if there are any."""
    parts = [_values(rows, metrics, f"Text metrics, {decoding} decoding: {which}values")]
    compared = [row for row in rows if row["texts"]["baseline"] is not None]
    if compared:
        parts.append(_differences(compared, metrics, f"Text metrics, {decoding} decoding: {which}differences to MLE"))
    return f'<div class="texts">{"".join(parts)}</div>'


def _values(rows: Sequence[MeasuredRow], metrics: Mapping[str, TextMetric], caption: str) -> str:
    truths = _truths(rows)
    lines: list[list[Cell]] = [
        [
            _name(metric),
            *(_cell(truth["texts"]["metrics"][key]["truth"], metric) for _, truth in truths),
            *(_cell(row["texts"]["metrics"][key]["answers"], metric) for row in rows),
        ]
        for key, metric in metrics.items()
    ]
    return grid(["metric", *(label for label, _ in truths), *(row["label"] for row in rows)], lines, caption)


def _differences(rows: Sequence[MeasuredRow], metrics: Mapping[str, TextMetric], caption: str) -> str:
    lines: list[list[Cell]] = [
        [_name(metric), *(_cell(row["texts"]["metrics"][key]["to_baseline"], metric, sign="+") for row in rows)]
        for key, metric in metrics.items()
    ]
    return grid(["minus continued MLE", *(row["label"] for row in rows)], lines, caption)


def _truths(rows: Sequence[MeasuredRow]) -> list[tuple[str, MeasuredRow]]:
    """(head, a row that has the truth's values), one for each run whose truth has other values."""
    found: dict[tuple[float | None, ...], tuple[str, MeasuredRow]] = {}  # the values -> the first run with them
    for row in rows:
        truths = [(score["truth"] or {}).get("value") for score in row["texts"]["metrics"].values()]
        found.setdefault(tuple(value and round(value, 6) for value in truths), (row["run"], row))
    return [("truth" if len(found) == 1 else f"{run}: truth", row) for run, row in found.values()]


def _name(metric: TextMetric) -> str:
    return f'<span title="{escape(metric.about)}">{escape(metric.label)}</span>'


def _cell(estimate: Mapping[str, Any] | None, metric: TextMetric, sign: str = "") -> str:
    """A value and, below it, its interval. A difference whose interval excludes 0 is bold."""
    if estimate is None or estimate["value"] is None:
        return DASH
    value = _number(estimate["value"], sign + metric.form)
    if estimate["low"] is None:
        return value
    ends = " to ".join(_number(estimate[end], sign + metric.form) for end in ("low", "high"))
    clear = sign and (estimate["low"] > 0 or estimate["high"] < 0)
    return f"{f'<b>{value}</b>' if clear else value}<br><small>{ends}</small>"


def _number(value: float, form: str) -> str:
    """Like `format_number`; what rounds to 0 has no sign."""
    is_zero = float(format(value, form)) == 0
    return format_number(0.0, form.lstrip("+")) if is_zero else format_number(value, form)


def _definitions(metrics: Mapping[str, TextMetric]) -> str:
    items = "".join(f"<dt>{escape(metric.label)}</dt><dd>{escape(metric.about)}</dd>" for metric in metrics.values())
    return f'<details><summary>What each metric is</summary><dl class="definitions">{items}</dl></details>'
