"""The report of one or several runs: a self-contained HTML page, the same facts as JSON, figures and model cards as files.

What a run directory lacks is reported as missing. Every win rate has its interval; models are compared with continued MLE on
the same prompts, paired, and the p-values are adjusted for the number of comparisons.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cpo_ray.artifacts import SELECTED, Summary, write_atomically, write_json
from cpo_ray.report.examples import first_examples
from cpo_ray.report.fairness import compare_trainings
from cpo_ray.report.findings import find_results, mean_words
from cpo_ray.report.headline import headline_sentences
from cpo_ray.report.model_card import CARD, write_cards
from cpo_ray.report.page import render_page
from cpo_ray.report.paper_tables import paper_tables
from cpo_ray.report.provenance import reproduce_command
from cpo_ray.report.rounds import rounds_of
from cpo_ray.report.run_contents import RunContents, all_decodings, read_object, read_runs
from cpo_ray.report.samples import collect_samples
from cpo_ray.report.svg import standalone
from cpo_ray.report.training_charts import draw_charts, first_step_loss


def write_report(roots: Sequence[Path], out: Path) -> Summary:
    """Read the run directories `roots`; write index.html, report.json, figures/*.svg and cards/ into `out`.

    Figures and cards of an earlier report in `out` are removed first.

    Returns the `headline` and the `sentences` after it, `examples` of answers, the results `table`, the `decoding` that the
    terminal shows, and what is `missing`.

    Raises ArtifactError if a run does not exist or is given twice, or for a damaged file in it. Missing parts are named on
    the page.
    """
    runs = read_runs(roots)
    table, decodings = find_results(runs), all_decodings(runs)
    shown = next(iter(decodings), None)
    headline, *sentences = headline_sentences(runs, table, shown)
    charts = draw_charts(runs, table)
    facts = [_facts(run) for run in runs]
    report = {
        "name": " vs ".join(run.label for run in runs),
        "finished": max((each["finished"] for each in facts if each["finished"]), default=None),
        "headline": headline,
        "sentences": sentences,
        "examples": first_examples(runs, shown),
        "decodings": decodings,
        "table": table,
        "paper": paper_tables(runs, table),
        "figures": [f"figures/{name}.svg" for name in charts],
        "runs": facts,
    }
    report = _without_nan(report)
    _remove_earlier_report(out)
    for name, svg in charts.items():
        write_text(out / "figures" / f"{name}.svg", standalone(svg))
    write_json(out / "report.json", report)
    groups = {run.label: run.groups for run in runs}
    write_text(out / "index.html", render_page(report, charts, groups, collect_samples(runs)))
    for run in runs:
        write_cards(run, [row for row in table if row["run"] == run.label], out / "cards" / _card_folder(run, runs))
    missing = [item if len(runs) == 1 else f"{each['label']}: {item}" for each in facts for item in each["missing"]]
    summary = {name: report[name] for name in ("headline", "sentences", "examples", "table")}
    return summary | {"missing": missing, "decoding": shown}


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _remove_earlier_report(out: Path) -> None:
    """Remove the figures and cards of an earlier report in `out`; other files are kept."""
    before = out / "report.json"
    if not before.is_file():
        return
    for name in read_object(before).get("figures", []):
        (out / "figures" / Path(name).name).unlink(missing_ok=True)
    for path in sorted((out / "cards").rglob("*"), reverse=True):  # files before their folder
        if path.name == CARD:
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _facts(run: RunContents) -> dict[str, Any]:
    """Return the part of report.json about one run, without its rows of the table."""
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
        "comparison": compare_trainings(run),
        "rounds": rounds_of(run.manifests),
        "sampling": run.kinds,
        "stages": _stages(run),
        "missing": _missing(run),
        "command": reproduce_command(run.config.get("name", "run")) if run.config else None,
        "config": run.config,
        "environment": run.environment,
    }


def _first_step(run: RunContents) -> dict[str, Any] | None:
    expected, curve = first_step_loss(run), run.curves.get("cpo")
    if expected is None or curve is None or not curve.train or curve.train[0]["step"] != 1:
        return None
    first = curve.train[0]
    return {"formula": expected[0], "expected": expected[1], "loss": first.get("loss"), "masked": first.get("masked")}


def _endpoints(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    masked = sum(row.get("masked") or 0 for row in rows)
    return {"steps": len(rows), "first": rows[0], "last": rows[-1], "masked": masked} if rows else {"steps": 0}


def _stages(run: RunContents) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "seconds": manifest.get("seconds"),
            "created": manifest.get("created"),
            "files": len(manifest.get("files", {})),
            "rows": _rows(manifest) or None,
        }
        for name, manifest in run.manifests.items()
    ]


def _rows(manifest: Mapping[str, Any]) -> int:
    """Return the rows of an artifact's files. The examples that groups are made of are not counted a second time."""
    files = manifest.get("files", {}).items()
    return sum(entry.get("rows", 0) for name, entry in files if not name.startswith(f"{SELECTED}/"))


def _missing(run: RunContents) -> list[str]:
    parts = {
        "the configuration (config.json)": run.config,
        "the environment (environment.json)": run.environment,
        "training metrics (metrics.jsonl)": run.curves,
        "sampling statistics (groups/train/stats.json)": run.kinds,
        "candidate groups (groups/train)": run.groups,
        "generated answers (generations)": run.generations,
        "verdicts": run.verdicts,
        "MAUVE scores (mauve/scores.json)": run.mauve,
        "text metrics (text_metrics)": run.texts,
    }
    outdated = [f"{name} (made from an earlier {source})" for name, source in run.outdated.items()]
    return [name for name, part in parts.items() if not part] + outdated


def _judges(run: RunContents) -> list[str | None]:
    return [run.judging(model, decoding).get("judge") for model, found in run.verdicts.items() for decoding in found]


def _ground_truth_length(run: RunContents) -> float | None:
    for decodings in run.generations.values():
        for rows in decodings.values():
            return mean_words([row["reference"] for row in rows])
    return None


def _card_folder(run: RunContents, runs: Sequence[RunContents]) -> str:
    """Return the folder of a run's cards below cards/: a separate one for each run if there are several."""
    return "" if len(runs) == 1 else f"{runs.index(run) + 1}-{re.sub('[^A-Za-z0-9_-]', '-', run.label)}"


def _without_nan(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, with null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
