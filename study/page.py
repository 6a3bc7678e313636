"""Write docs/study.md, charts, docs/study.json and the report's quotes from the runs of the study: `python -m study.page`."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from cpo_ray.artifacts import write_atomically, write_json
from cpo_ray.errors import CpoRayError
from cpo_ray.report.svg import Labels
from cpo_ray.run_directory import run_directory
from cpo_ray.submission.sweeps.grid import load_sweep
from cpo_ray.submission.sweeps.preregistration import REGISTERED
from study.charts import ChartRow, difference_chart
from study.decisions import Decision, Values, decide
from study.estimates import mean_over_seeds
from study.measurements import Results, by_seed, collect
from study.plan import Plan, read_plan
from study.quotes import quotes_of, write_quotes
from study.tables import BASELINE, arm_table, looks_sentence, metric_table, test_table, verdict_table

BEGIN, END = "<!-- results: written by `make study` -->\n", "<!-- end of results -->\n"
SHIPPED = Path("study/study.yaml")
COMMAND = f"cpo-ray sweep {SHIPPED}"
HOW = """\
Every value is of one run; runs of one seed share their data, reference and MLE. An interval is Student's over seeds. Tests \
are Student's on the contrast of each seed, so paired within seeds. p is two-sided. A hypothesis with several tests holds if \
all do, so its largest p-value counts. In the table of tests, the interval has the level of its look without Holm's \
correction: 1 minus the p-value that a single hypothesis must reach. O'Brien-Fleming bounds are those of the normal \
distribution, and a t statistic is compared by its p-value with the p-value of the bound."""


def render(plan: Plan, results: Results, registration: str, command: str) -> str:
    """The results as Markdown. registration: hash and commit, or that there is none yet."""
    values = by_seed(results)
    decisions = decide(plan, values)
    parts = [
        f"Collected {results['collected']} by `python -m study.page` from the runs of `{command}`. {registration}",
        f"## Verdicts\n\n{verdict_table(plan, decisions)}",
        f"## Tests\n\n{test_table(plan, decisions)}\n{looks_sentence(plan)} {HOW}",
        *_metric_sections(plan, results, values),
        f"## Arms\n\n{arm_table(plan, results)}",
        *_problems(results, decisions),
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def render_charts(plan: Plan, values: Values) -> dict[str, str]:
    """Metric -> chart of every arm's difference between CPO and MLE, for the metrics that some run has."""
    charts = {}
    for name, metric in plan.metrics.items():
        terms, rows = values.get(name, {}), []
        for arm in plan.arms:
            ours, theirs = terms.get(f"{arm}/cpo", {}), terms.get(f"{arm}/{BASELINE}", {})
            differences = [ours[seed] - theirs[seed] for seed in plan.seeds if seed in ours and seed in theirs]
            if differences:
                rows.append(ChartRow(arm, mean_over_seeds(differences), differences))
        if rows:
            better = "left" if metric.better == "lower" else "right"
            labels = Labels(name, f"{metric.label}: CPO minus MLE", f"difference; better is to the {better}")
            charts[name] = difference_chart(labels, rows)
    return charts


def update(page: str, results: str) -> str:
    """The page with its results replaced. Raises CpoRayError if it has no place for them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise CpoRayError(f"the page has no lines {BEGIN.strip()} and {END.strip()}: add them where the results belong")
    return f"{before}{BEGIN}\n{results}\n{END}{after}"


def _metric_sections(plan: Plan, results: Results, values: Values) -> Iterator[str]:
    for name, metric in plan.metrics.items():
        better = f"{metric.better.capitalize()} is better."
        chart = f"\n![{metric.label}: CPO minus MLE](study/{name}.svg)\n" if values.get(name) else ""
        yield f"## {metric.label}\n\n{metric.about} {better}\n\n{metric_table(name, plan, results, values)}{chart}"


def _problems(results: Results, decisions: dict[str, Decision]) -> Iterator[str]:
    """Failed runs, runs of a modified checkout, and hypotheses that are not tested yet."""
    failed = [run for run in results["runs"] if run["status"] == "failed"]
    if failed:
        lines = [f"- {run['arm']}, seed {run['seed']}: {run['error'].splitlines()[0]}\n" for run in failed]
        yield "## Failed runs\n\n" + "".join(lines)
    commits = sorted({run["revision"].get("commit") or "unknown" for run in results["runs"] if run["status"] == "done"})
    modified = [run for run in results["runs"] if run["revision"].get("modified")]
    if commits:
        listed = ", ".join(f"`{commit[:12]}`" for commit in commits)
        dirty = f" {len(modified)} runs had uncommitted changes to tracked files." if modified else ""
        yield f"## Provenance\n\nThe runs were made at commit {listed}.{dirty}"
    waiting = [name for name, item in decisions.items() if item.standing is None]
    if waiting:
        yield f"Not tested yet: {', '.join(waiting)}."


def describe_registration(root: Path) -> str:
    """Hash and commit of the preregistration under which the study was started."""
    file = root / REGISTERED
    if not file.is_file():
        return "The study has not been started."
    recorded = json.loads(file.read_text(encoding="utf-8"))
    return f"Preregistration `{recorded['hash']}`, in commit `{recorded['commit'][:12]}`."


def main(arguments: list[str] | None = None) -> None:
    """Write the page, its charts and the values that they are made of."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", type=Path, nargs="?", default=SHIPPED)
    parser.add_argument("--run-dir", type=Path, help="the sweep's directory; default: as for cpo-ray sweep")
    parser.add_argument("--out", type=Path, default=Path("docs/study.md"))
    parser.add_argument("--results", type=Path, help="write the page from this JSON file, without any run")
    given = parser.parse_args(arguments)
    try:
        write(given.sweep, given.run_dir, given.out, given.results)
    except CpoRayError as error:
        sys.exit(str(error))


def write(sweep_file: Path, run_dir: Path | None, out: Path, recorded: Path | None) -> None:
    """Collect the results, or read recorded ones, and write everything. Raises CpoRayError for a mistake in the files."""
    sweep = load_sweep(sweep_file)
    if sweep.file.preregistration is None:
        raise CpoRayError(f"{sweep_file} names no preregistration")
    plan, root = read_plan(sweep_file.parent / sweep.file.preregistration), run_directory(sweep.file.name, run_dir)
    command = COMMAND if sweep_file == SHIPPED else f"cpo-ray sweep {sweep_file}"
    if recorded is None:
        results = collect(plan, sweep, root, command)
        write_json(out.with_suffix(".json"), results)
    else:
        results = cast("Results", json.loads(recorded.read_text(encoding="utf-8")))
    text = update(out.read_text(encoding="utf-8"), render(plan, results, describe_registration(root), command))
    for name, chart in render_charts(plan, by_seed(results)).items():
        _write_text(out.parent / out.stem / f"{name}.svg", chart)
    _write_text(out, text)
    if sweep_file == SHIPPED:
        write_quotes(quotes_of(results, by_seed(results)))


def _write_text(file: Path, text: str) -> None:
    with write_atomically(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
