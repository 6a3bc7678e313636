"""The report of a run: one self-contained HTML page, the same facts as JSON, and the figures as files.

What the run directory lacks is named as missing, never guessed. Every win rate has its interval; models are compared
with continued MLE on the same prompts, paired, and the p-values are adjusted for how many comparisons there are.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from cpo_ray.artifacts import Summary, write_atomically, write_json
from cpo_ray.evaluation.figures import standalone
from cpo_ray.evaluation.page.charts import draw_charts, first_step_loss
from cpo_ray.evaluation.page.findings import BASELINE, TableRow, find_results, mean_words, signed, tell_headline
from cpo_ray.evaluation.page.run import Run, read_run
from cpo_ray.evaluation.page.samples import collect_samples
from cpo_ray.evaluation.page.sections import render_page


def write_report(root: Path, out: Path) -> Summary:
    """Read the run directory `root`; write out/index.html, out/report.json and out/figures/*.svg.

    Returns the `headline`, the results `table`, the `decoding` that `format_table` shows, and what is `missing`.

    Raises ArtifactError where `root` is not there or a file in it is damaged; what is absent is said on the page.
    """
    run = read_run(root)
    table, decodings = find_results(run), run.decodings
    headline = tell_headline(table, decodings[0] if decodings else None)
    charts = draw_charts(run, table, decodings)
    report = {
        "run": run.name,
        "finished": max((str(item.get("created", "")) for item in run.manifests.values()), default=None),
        "headline": headline,
        "decodings": decodings,
        "table": table,
        "ground_truth_mean_length": _ground_truth_length(run),
        "judges": sorted({judge for judge in _judges(run) if judge}),
        "training": {stage: _endpoints(curve.train) for stage, curve in run.curves.items()},
        "first_step": _first_step(run),
        "sampling": run.kinds,
        "stages": _stages(run),
        "missing": _missing(run),
        "figures": [f"figures/{name}.svg" for name in charts],
        "config": run.config,
        "environment": run.environment,
    }
    report = _without_nan(report)
    for name, svg in charts.items():
        _write_text(out / "figures" / f"{name}.svg", standalone(svg))
    write_json(out / "report.json", report)
    page = render_page(report, charts, run.groups, collect_samples(run))
    _write_text(out / "index.html", page)
    return {name: report[name] for name in ("headline", "table", "missing")} | {"decoding": next(iter(decodings), None)}


def format_table(summary: Summary) -> Table:
    """The summary's first decoding, for the terminal."""
    title = f"against the ground truth, {escape(summary['decoding'])} decoding" if summary["decoding"] else None
    table = Table(title=title)
    for column in ("model", "win rate, 95% interval", "vs MLE", "MAUVE", "mean length"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in summary["table"]:
        if row["decoding"] == summary["decoding"]:
            table.add_row(
                row["model"],
                _told_rate(row),
                _told_difference(row),
                _told_mauve(row),
                "-" if row["mean_length"] is None else f"{row['mean_length']:.1f}",
            )
    return table


def _told_rate(row: TableRow) -> str:
    return "-" if row["win_rate"] is None else f"{row['win_rate']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _told_difference(row: TableRow) -> str:
    """Points of win rate; a difference that is not significant is not dressed up as one."""
    difference = row["difference_to_mle"]
    if difference is None:
        return "baseline" if row["model"] == BASELINE else "-"
    return f"{signed(100 * difference['value'])}" + ("" if difference["significant"] else " n.s.")


def _told_mauve(row: TableRow) -> str:
    if row["mauve"] is None:
        return "-"
    deviation = row["mauve_deviation"]
    return f"{row['mauve']:.3f}" + ("" if deviation is None else f" \N{PLUS-MINUS SIGN} {deviation:.3f}")


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
    return [name for name, part in parts.items() if not part]


def _judges(run: Run) -> list[str | None]:
    return [
        judged.get("judge")
        for name, manifest in run.manifests.items()
        if name.startswith("verdicts/")
        for judged in (manifest.get("summary") or {}).values()
        if isinstance(judged, dict)
    ]


def _ground_truth_length(run: Run) -> float | None:
    for decodings in run.generations.values():
        for rows in decodings.values():
            return mean_words([row["reference"] for row in rows])
    return None


def _without_nan(value: Any) -> Any:
    """NaN and infinity are not JSON: null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_text(path: Path, text: str) -> None:
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
