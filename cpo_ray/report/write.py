"""The report of one run or several: one self-contained HTML page, the same facts as JSON, figures and model cards as files.

What a run directory lacks is named as missing, never guessed. Every win rate has its interval; models are compared
with continued MLE on the same prompts, paired, and the p-values are adjusted for how many comparisons there are.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from cpo_ray.artifacts import Summary, write_atomically, write_json
from cpo_ray.monitoring.console import console, say
from cpo_ray.report.figures import standalone
from cpo_ray.report.findings import TableRow, find_results, mean_words, signed, tell_headline
from cpo_ray.report.model_card import CARD, write_cards
from cpo_ray.report.page import render_page
from cpo_ray.report.paper_tables import lay_out
from cpo_ray.report.provenance import tell_command
from cpo_ray.report.run_contents import Run, read_object, read_runs, shared_decodings
from cpo_ray.report.samples import collect_samples
from cpo_ray.report.training_charts import draw_charts, first_step_loss


def write_report(roots: Sequence[Path], out: Path) -> Summary:
    """Read the run directories `roots`; write index.html, report.json, figures/*.svg and cards/ into `out`.

    Figures and cards of a report that stands there are removed first.

    Returns the `headline`, the results `table`, the `decoding` that `format_table` shows, and what is `missing`.

    Raises ArtifactError where a run is not there or given twice, or a file in it is damaged; what is absent is said on
    the page.
    """
    runs = read_runs(roots)
    table, decodings = find_results(runs), shared_decodings(runs)
    charts = draw_charts(runs, table)
    facts = [_facts(run) for run in runs]
    report = {
        "name": " vs ".join(run.label for run in runs),
        "finished": max((each["finished"] for each in facts if each["finished"]), default=None),
        "headline": tell_headline(table, decodings[0] if decodings else None),
        "decodings": decodings,
        "table": table,
        "paper": lay_out(runs, table),
        "figures": [f"figures/{name}.svg" for name in charts],
        "runs": facts,
    }
    report = _without_nan(report)
    _clear(out)
    for name, svg in charts.items():
        write_text(out / "figures" / f"{name}.svg", standalone(svg))
    write_json(out / "report.json", report)
    groups = {run.label: run.groups for run in runs}
    write_text(out / "index.html", render_page(report, charts, groups, collect_samples(runs)))
    for run in runs:
        write_cards(run, [row for row in table if row["run"] == run.label], out / "cards" / _folder(run, runs))
    missing = [item if len(runs) == 1 else f"{each['label']}: {item}" for each in facts for item in each["missing"]]
    summary = {name: report[name] for name in ("headline", "table")}
    return summary | {"missing": missing, "decoding": next(iter(decodings), None)}


def show_report(summary: Summary, folder: Path) -> None:
    """Print what `write_report` returned, and where the page is."""
    console.print(format_table(summary))
    say(escape(summary["headline"]))
    say(f"[bold]{escape(str(folder / 'index.html'))}[/]")


def format_table(summary: Summary) -> Table:
    """The summary's first decoding, for the terminal."""
    title = f"against the ground truth, {escape(summary['decoding'])} decoding" if summary["decoding"] else None
    table = Table(title=title)
    for column in ("model", "win rate, 95% interval", "vs MLE", "MAUVE", "mean length"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in summary["table"]:
        if row["decoding"] == summary["decoding"]:
            table.add_row(
                escape(row["label"]),
                _told_rate(row),
                _told_difference(row),
                _told_mauve(row),
                "-" if row["mean_length"] is None else f"{row['mean_length']:.1f}",
            )
    return table


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _clear(out: Path) -> None:
    """Remove the figures and cards of the report that stands in `out`, if one does; what else lies there stays."""
    before = out / "report.json"
    if not before.is_file():
        return
    for name in read_object(before).get("figures", []):
        (out / "figures" / Path(name).name).unlink(missing_ok=True)
    for path in sorted((out / "cards").rglob("*"), reverse=True):  # what lies in a folder before the folder
        if path.name == CARD:
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _told_rate(row: TableRow) -> str:
    return "-" if row["win_rate"] is None else f"{row['win_rate']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _told_difference(row: TableRow) -> str:
    """Points of win rate; a difference that is not significant is not dressed up as one."""
    difference = row["difference_to_mle"]
    if difference is None:
        return "baseline" if row["is_baseline"] else "-"
    return f"{signed(100 * difference['value'])}" + ("" if difference["significant"] else " n.s.")


def _told_mauve(row: TableRow) -> str:
    if row["mauve"] is None:
        return "-"
    deviation = row["mauve_deviation"]
    return f"{row['mauve']:.3f}" + ("" if deviation is None else f" \N{PLUS-MINUS SIGN} {deviation:.3f}")


def _facts(run: Run) -> dict[str, Any]:
    """What report.json says of one run, besides its rows of the table."""
    source, base = run.setting
    return {
        "label": run.label,
        "methods": list(dict.fromkeys(run.method(model) for model in run.models if model != "reference")),
        "source": source,
        "base": base,
        "finished": max((str(item.get("created", "")) for item in run.manifests.values()), default=None),
        "ground_truth_mean_length": _ground_truth_length(run),
        "judges": sorted({judge for judge in _judges(run) if judge}),
        "training": {stage: _endpoints(curve.train) for stage, curve in run.curves.items()},
        "first_step": _first_step(run),
        "sampling": run.kinds,
        "stages": _stages(run),
        "missing": _missing(run),
        "command": tell_command(run.config.get("name", "run")) if run.config else None,
        "config": run.config,
        "environment": run.environment,
    }


def _first_step(run: Run) -> dict[str, Any] | None:
    expected, curve = first_step_loss(run), run.curves.get("cpo")
    if expected is None or curve is None or not curve.train or curve.train[0]["step"] != 1:
        return None
    first = curve.train[0]
    return {"formula": expected[0], "expected": expected[1], "loss": first.get("loss"), "masked": first.get("masked")}


def _endpoints(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    masked = sum(row.get("masked") or 0 for row in rows)
    return {"steps": len(rows), "first": rows[0], "last": rows[-1], "masked": masked} if rows else {"steps": 0}


def _stages(run: Run) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "seconds": manifest.get("seconds"),
            "created": manifest.get("created"),
            "files": len(manifest.get("files", {})),
            "rows": sum(entry.get("rows", 0) for entry in manifest.get("files", {}).values()) or None,
        }
        for name, manifest in run.manifests.items()
    ]


def _missing(run: Run) -> list[str]:
    parts = {
        "the configuration (config.json)": run.config,
        "the environment (environment.json)": run.environment,
        "training metrics (metrics.jsonl)": run.curves,
        "sampling statistics (groups/train/stats.json)": run.kinds,
        "candidate groups (groups/train)": run.groups,
        "generated answers (generations)": run.generations,
        "verdicts": run.verdicts,
        "MAUVE scores (mauve/scores.json)": run.mauve,
    }
    outdated = [f"{name} (made from an earlier {source})" for name, source in run.outdated.items()]
    return [name for name, part in parts.items() if not part] + outdated


def _judges(run: Run) -> list[str | None]:
    return [run.judging(model, decoding).get("judge") for model, found in run.verdicts.items() for decoding in found]


def _ground_truth_length(run: Run) -> float | None:
    for decodings in run.generations.values():
        for rows in decodings.values():
            return mean_words([row["reference"] for row in rows])
    return None


def _folder(run: Run, runs: Sequence[Run]) -> str:
    """Where a run's cards go below cards/: a place of its own where there are several."""
    return "" if len(runs) == 1 else f"{runs.index(run) + 1}-{re.sub('[^A-Za-z0-9_-]', '-', run.label)}"


def _without_nan(value: Any) -> Any:
    """NaN and infinity are not JSON: null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
