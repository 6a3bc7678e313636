"""The report's page: its sections in order, in one file without external resources. Missing parts are named."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from cpo_ray.report.markup import DASH, Cell, format_number, format_time, grid, missing_notice
from cpo_ray.report.provenance import render_runs
from cpo_ray.report.result_tables import ReportFacts, render_models, render_paper, render_result, render_trials
from cpo_ray.report.rounds import render_rounds
from cpo_ray.report.samples import embed_json
from cpo_ray.report.sampling_section import render_sampling
from cpo_ray.report.svg import PALETTES
from cpo_ray.report.text_tables import render_texts

RESULT_CHARTS = ("win-rate-", "mauve-")
SAMPLING_CHARTS = ("sampling-",)


def render_page(
    report: ReportFacts, charts: Mapping[str, str], groups: Mapping[str, Sequence[Any]], samples: Mapping[str, Any]
) -> str:
    """Render the page. groups: run label -> example groups; samples: the result of `collect_samples`."""
    resources = files(__package__)
    script = resources.joinpath("page.js").read_text(encoding="utf-8")
    runs = report["runs"]
    browser = resources.joinpath("samples.html").read_text(encoding="utf-8")
    curves = {name: svg for name, svg in charts.items() if not name.startswith(RESULT_CHARTS + SAMPLING_CHARTS)}
    sections = {
        "result": ("Result", render_result(report)),
        "paper": ("As in the paper", render_paper(report)),
        "table": ("All models", render_models(report)),
        "texts": ("Texts", render_texts(report)),
        "figures": ("Win rates", _figures(charts, RESULT_CHARTS) or missing_notice("No verdicts: nothing to draw.")),
        "training": (
            "Training",
            _training(runs)
            + render_rounds(runs)
            + render_trials(runs)
            + (_figures(curves) or missing_notice("No training metrics.")),
        ),
        "sampling": ("Sampling", _figures(charts, SAMPLING_CHARTS) + render_sampling(runs, groups)),
        "samples": ("Samples", _samples(samples, browser)),
        "run": ("This run" if len(runs) == 1 else "The runs", render_runs(runs)),
    }
    body = "".join(
        f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{title}</h2>{content}</section>'
        for key, (title, content) in sections.items()
    )
    return Template(resources.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        name=escape(report["name"]),
        finished=f"Last stage finished {format_time(report['finished'])} UTC"
        if report["finished"]
        else "No stage has finished",
        # The security policy allows only this script, so text that is not escaped by mistake is still not executed.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=_palettes() + resources.joinpath("page.css").read_text(encoding="utf-8"),
        navigation="".join(f'<a href="#{key}">{title}</a>' for key, (title, _) in sections.items()),
        body=body,
        samples=embed_json(samples),
        script=script,
    )


def _palettes() -> str:
    def variables(theme: str) -> str:
        return "".join(f"--{name}:{value};" for name, value in PALETTES[theme].items()) + f"color-scheme:{theme}"

    dark = variables("dark")
    return (
        f":root{{{variables('light')}}}@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}"
        f":root[data-theme=dark]{{{dark}}}@media print{{:root:root:root{{{variables('light')}}}}}"
    )


def _figures(charts: Mapping[str, str], prefixes: tuple[str, ...] = ("",)) -> str:
    """Render the charts whose names begin with one of the prefixes; an empty string if there are none."""
    chosen = [svg for name, svg in charts.items() if name.startswith(prefixes)]
    return '<div class="charts">' + "".join(f"<figure>{svg}</figure>" for svg in chosen) + "</div>" if chosen else ""


def _training(runs: Sequence[Mapping[str, Any]]) -> str:
    """Render the first step of each CPO training: a sentence for one run, a table for several."""
    if len(runs) == 1:
        faint = (
            "<p>Long curves are drawn twice: every step faintly, and a running mean.</p>" if runs[0]["training"] else ""
        )
        sentence = _first_step_sentence(runs[0])
        return (f"<p>{sentence}</p>" if sentence else "") + faint
    rows: list[list[Cell]] = []
    for run in runs:
        first, cpo = run["first_step"] or {}, run["training"].get("cpo", {})
        expected = f"{escape(first['formula'])} = {first['expected']:.4f}" if first else DASH
        began, masked = format_number(first.get("loss"), ".4f"), format_number(cpo.get("masked"), ",.0f")
        rows.append([escape(run["label"]), format_number(cpo.get("steps"), ",.0f"), expected, began, masked])
    heads = ["run", "CPO steps", "the loss must begin at", "it began at", "masked candidates"]
    note = '<p class="note">At the first step the policy is the reference, so the loss is known. Lines are running means.</p>'
    return grid(heads, rows, "How CPO training began") + note


def _first_step_sentence(run: Mapping[str, Any]) -> str:
    first, masked = run["first_step"], run["training"].get("cpo", {}).get("masked", 0)
    text = ""
    if first is not None and first["loss"] is not None:
        lower = f" ({first['masked']} of the step's candidates were masked)" if first["masked"] else ""
        text = (
            f"At its first step the policy is the reference, so the CPO loss must be {escape(first['formula'])} = "
            f"{first['expected']:.4f}. It was <b>{first['loss']:.4f}</b>{lower}. "
        )
    if masked:
        text += f"In all, {masked:,} candidates were equal to the gold and left out of the loss."
    return text


def _samples(samples: Mapping[str, Any], browser: str) -> str:
    if not samples["rows"]:
        return missing_notice("No generated answers: generation has not run.")
    shown, total = len(samples["rows"]), samples["total"]
    cut = f"<p>Only the first {shown} of {total} prompts fit in this page; all are in <code>generations/</code>.</p>"
    return (cut if shown < total else "") + browser
