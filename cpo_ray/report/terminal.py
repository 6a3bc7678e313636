"""Print a report's summary on the terminal: the table of results, the headline and the path of the page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from cpo_ray.artifacts import Summary
from cpo_ray.evaluation.text_scores import TEXT_METRICS
from cpo_ray.monitoring.console import console, say, set_quiet
from cpo_ray.report.examples import format_example
from cpo_ray.report.findings import TableRow, signed
from cpo_ray.report.text_tables import measured_rows, metrics_of


def show_report(summary: Summary, folder: Path) -> None:
    """Print what `write_report` returned, and the path of the page."""
    set_quiet(False)  # this is what was asked for
    console.print(format_table(summary))
    texts = format_texts(summary)
    if texts is not None:
        console.print(texts)
    for example in summary["examples"][:1]:
        console.print(format_example(example))
    for sentence in (summary["headline"], *summary["sentences"]):
        say(escape(sentence))
    say(f"[bold]{escape(str(folder / 'index.html'))}[/]")


def format_table(summary: Summary) -> Table:
    """Format the rows of the summary's first decoding as a table."""
    title = f"against the ground truth, {escape(summary['decoding'])} decoding" if summary["decoding"] else None
    table = Table(title=title)
    for column in ("model", "win rate, 95% interval", "vs MLE", "MAUVE", "mean length"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in summary["table"]:
        if row["decoding"] == summary["decoding"]:
            table.add_row(
                escape(row["label"]),
                _format_rate(row),
                _format_difference(row),
                _format_mauve(row),
                "-" if row["mean_length"] is None else f"{row['mean_length']:.1f}",
            )
    return table


def format_texts(summary: Summary) -> Table | None:
    """Format the text metrics of the summary's first decoding as a table that ends with the truth; None without any."""
    rows = measured_rows(summary["table"], summary["decoding"])
    if not rows:
        return None
    metrics = {key: metric for key, metric in metrics_of(rows).items() if metric.short}
    title = (
        f"the texts, {escape(summary['decoding'])} decoding (\N{PLUS-MINUS SIGN} half of the 95% interval over prompts)"
    )
    table = Table(title=title)
    for column in ("model", *(metric.label for metric in metrics.values())):
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in rows:
        table.add_row(escape(row["label"]), *(_format_text(row, key, "answers") for key in metrics))
    table.add_row("truth", *(_format_text(rows[0], key, "truth") for key in metrics))
    return table


def _format_text(row: Mapping[str, Any], key: str, side: str) -> str:
    estimate, form = row["texts"]["metrics"][key][side], TEXT_METRICS[key].form
    if estimate is None or estimate["value"] is None:
        return "-"
    value = format(estimate["value"], form)
    if estimate["low"] is None:
        return value
    return f"{value}\n\N{PLUS-MINUS SIGN}{(estimate['high'] - estimate['low']) / 2:{form}}"


def _format_rate(row: TableRow) -> str:
    return "-" if row["win_rate"] is None else f"{row['win_rate']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _format_difference(row: TableRow) -> str:
    """Format the difference in points of win rate. A difference that is not significant is marked `n.s.`."""
    difference = row["difference_to_mle"]
    if difference is None:
        return "baseline" if row["is_baseline"] else "-"
    return f"{signed(100 * difference['value'])}" + ("" if difference["significant"] else " n.s.")


def _format_mauve(row: TableRow) -> str:
    if row["mauve"] is None:
        return "-"
    deviation = row["mauve_deviation"]
    return f"{row['mauve']:.3f}" + ("" if deviation is None else f" \N{PLUS-MINUS SIGN} {deviation:.3f}")
