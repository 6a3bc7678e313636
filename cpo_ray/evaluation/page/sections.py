"""The report's sections as HTML. Everything that comes from a run is escaped; what is absent is said."""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import yaml

from cpo_ray.evaluation.figures import PALETTES
from cpo_ray.evaluation.page.findings import BASELINE, signed, told_p
from cpo_ray.evaluation.page.samples import embed_json

Report = Mapping[str, Any]
Cell = str | tuple[str, str]  # HTML, or HTML and a class

RESULT_CHARTS = ("win-rate-", "mauve-")
DASH = "\N{EN DASH}"
LOCAL_JUDGES = {"oracle", "overlap"}  # see evaluation/oracle.py


def render_page(report: Report, charts: Mapping[str, str], groups: Sequence[Any], samples: Mapping[str, Any]) -> str:
    """The whole page: one file that loads nothing."""
    resources = files(__package__)
    script = resources.joinpath("page.js").read_text(encoding="utf-8")
    sections = {
        "result": ("Result", _result(report)),
        "table": ("All models", _table(report)),
        "figures": ("Win rates", _figures(charts, results=True)),
        "training": ("Training", _first_step(report) + _figures(charts, results=False)),
        "sampling": ("Sampling", _sampling(report) + _groups(groups)),
        "samples": ("Samples", _samples(samples, resources.joinpath("samples.html").read_text(encoding="utf-8"))),
        "run": ("This run", _run(report)),
    }
    body = "".join(
        f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{title}</h2>{content}</section>'
        for key, (title, content) in sections.items()
    )
    return Template(resources.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        name=escape(report["run"]),
        finished=f"Last stage finished {_moment(report['finished'])} UTC"
        if report["finished"]
        else "No stage has finished",
        # Only this very script may run: were a text ever to slip through unescaped, it would still be only a text.
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


def _result(report: Report) -> str:
    missing = _list(report["missing"])
    said = f"<p>This run directory does not hold: {missing}. Their sections say so.</p>" if missing else ""
    best_of = (
        "Where several models were trained with CPO, the best was picked on these same prompts, which flatters it."
    )
    judges = _list(report["judges"])
    by = f"Judged by <b>{judges}</b>, both the answer and the ground truth shown. " if judges else ""
    if set(report["judges"]) & LOCAL_JUDGES:
        by += "This judge knows the ground truth to be right, so an answer can tie with it and never win: 50% is the most. "
    note = f"{by}A tie counts as half; comparisons are paired, prompt by prompt. {best_of}" if report["table"] else ""
    return f'<p class="headline">{escape(report["headline"])}</p><p class="note">{note}</p>{said}'


def _table(report: Report) -> str:
    """One table per decoding."""
    if not report["table"]:
        return _absent("No answers, verdicts or MAUVE scores: generation has not run.")
    parts = []
    for decoding in report["decodings"]:
        rows = [_result_row(row) for row in report["table"] if row["decoding"] == decoding]
        rows.append(["ground truth", *[DASH] * 6, _number(report["ground_truth_mean_length"], ".1f")])
        parts.append(
            f"<h3>{escape(decoding)} decoding</h3>" + _grid(RESULT_HEADS, rows, f"Results, {decoding} decoding")
        )
    return "".join(parts) + RESULT_NOTE


RESULT_HEADS = (
    "model",
    "win rate [95%]",
    "vs MLE, points",
    "wins / ties / losses",
    "invalid",
    "flips",
    "MAUVE",
    "words",
)
RESULT_NOTE = """<p class="note">Win rate against the ground truth, with Tango's score interval (without ties: Wilson's). The
difference to continued MLE is paired on the same prompts: bootstrap interval, exact sign-flip test, Holm-adjusted over the
models of a decoding; n.s.: not significant at 0.05. Flips: prompts on which the judge changed its mind with the order, counted
as ties. Words: mean length of an answer.</p>"""


def _result_row(row: Mapping[str, Any]) -> list[Cell]:
    mauve = DASH if row["mauve"] is None else f"{row['mauve']:.3f}"
    if row["mauve_deviation"] is not None:
        mauve += f" <small>\N{PLUS-MINUS SIGN} {row['mauve_deviation']:.3f}</small>"
    judged: list[Cell] = [DASH] * 5
    if row["win_rate"] is not None:
        judged = [
            f"<b>{row['win_rate']:.3f}</b> <small>[{row['low']:.3f}, {row['high']:.3f}]</small>",
            _difference(row),
            f"{row['wins']} / {row['ties']} / {row['losses']}",
            str(row["invalid"]),
            f"{row['flip_rate']:.1%}",
        ]
    return [escape(row["model"]), *judged, mauve, _number(row["mean_length"], ".1f")]


def _difference(row: Mapping[str, Any]) -> str:
    difference = row["difference_to_mle"]
    if difference is None:
        return "baseline" if row["model"] == BASELINE else DASH
    low, high = (signed(100 * difference[key]) for key in ("low", "high"))
    strength = told_p(difference["p_adjusted"]) if difference["significant"] else "n.s."
    direction = "better" if difference["value"] > 0 else "worse"
    compared = f"{difference['n']} prompts compared, {difference['excluded']} without a verdict on both sides left out"
    return (
        f'<span title="{compared}">{signed(100 * difference["value"])} <small>[{low}, {high}]</small> '
        f'<span class="{direction if difference["significant"] else "unsure"}">{strength}</span></span>'
    )


def _figures(charts: Mapping[str, str], *, results: bool) -> str:
    chosen = [svg for name, svg in charts.items() if name.startswith(RESULT_CHARTS) == results]
    if not chosen:
        return _absent("No verdicts: nothing to draw." if results else "No training metrics.")
    return '<div class="charts">' + "".join(f"<figure>{svg}</figure>" for svg in chosen) + "</div>"


def _first_step(report: Report) -> str:
    first, masked = report["first_step"], report["training"].get("cpo", {}).get("masked", 0)
    said = ""
    if first is not None and first["loss"] is not None:
        lower = f" ({first['masked']} of the step's candidates were masked)" if first["masked"] else ""
        said = (
            f"At its first step the policy is the reference, so the CPO loss must be {escape(first['formula'])} = "
            f"{first['expected']:.4f}. It was <b>{first['loss']:.4f}</b>{lower}. "
        )
    if masked:
        said += f"In all, {masked:,} candidates were equal to the gold and left out of the loss. "
    return f"<p>{said}Faint lines show every step, bold ones a running mean.</p>" if report["training"] else ""


def _sampling(report: Report) -> str:
    kinds = report["sampling"]
    if not kinds:
        return _absent("No sampling statistics: groups/train/stats.json is not there.")
    rows = []
    for kind, found in kinds.items():
        equal = found.get("equal_to_gold") if kind != "gold" else None
        share = f" <small>({equal / found['count']:.1%})</small>" if equal and found.get("count") else ""
        rows.append(
            [
                escape(kind),
                _number(found.get("count"), ",.0f"),
                _number(found.get("mean_tokens"), ".1f"),
                _number(found.get("mean_similarity"), ".3f"),
                _number(equal, ",.0f") + share,
                _number(found.get("mean_ref_logp"), ".2f"),
            ]
        )
    heads = ["kind", "candidates", "mean tokens", "mean similarity", "equal to gold", "mean reference log-prob"]
    return _grid(heads, rows, "Candidates of the training groups, by kind") + SAMPLING_NOTE


SAMPLING_NOTE = """<p class="note">Candidates of the training groups. Similarity: cosine to the gold's embedding. A candidate
equal to the gold carries no signal and is masked out of the loss. Log-probs in nats, summed over the continuation.</p>"""


def _groups(groups: Sequence[Mapping[str, Any]]) -> str:
    if not groups:
        return _absent("No candidate groups: groups/train holds no Parquet file.")
    parts = ["<h3>Example groups</h3><p>The first groups of the first shard, not chosen. Rank 0 is the gold.</p>"]
    for number, group in enumerate(groups, 1):
        order = sorted(range(len(group["rank"])), key=group["rank"].__getitem__)
        rows: list[list[Cell]] = [
            [
                f'<span class="kind">{escape(group["candidate_kind"][index])}</span>',
                (escape(group["candidate_text"][index]) or "<i>empty</i>", "text"),
                str(group["rank"][index]),
                _number(group["similarity"][index], ".3f"),
                _number(group["ref_logps"][index], ".2f"),
            ]
            for index in order
        ]
        heads = ["kind", "continuation", "rank", "similarity", "reference log-prob"]
        table = _grid(heads, rows, f"Candidates of example group {number}, by rank")
        prompt = f'<pre class="prompt">{escape(group["prompt"])}</pre>'
        parts.append(f'<article class="group"><h4>Prompt</h4>{prompt}{table}</article>')
    return "".join(parts)


def _samples(samples: Mapping[str, Any], browser: str) -> str:
    if not samples["rows"]:
        return _absent("No generated answers: generation has not run.")
    shown, total = len(samples["rows"]), samples["total"]
    cut = f"<p>Only the first {shown} of {total} prompts fit in this page; all are in <code>generations/</code>.</p>"
    return (cut if shown < total else "") + browser


def _run(report: Report) -> str:
    stages = [
        [escape(item["name"]), _duration(item["seconds"]), _number(item["rows"], ",.0f"), _moment(item["created"])]
        for item in report["stages"]
    ]
    heads = ["artifact", "took", "rows", "finished, UTC"]
    done = _grid(heads, stages, "Artifacts, oldest first") if stages else _absent("No stage has finished.")
    facts = _flatten(report["environment"])
    environment = (
        _grid(["what", "value"], facts, "Versions and hardware") if facts else _absent("environment.json is not there.")
    )
    parts = [f'<div class="columns"><div><h3>Stages</h3>{done}</div><div><h3>Environment</h3>{environment}</div></div>']
    parts.append("<h3>Configuration and command</h3>")
    if not report["config"]:
        return "".join(
            [*parts, _absent("config.json is not there, so the command to reproduce this run is not known.")]
        )
    revision = (report["environment"] or {}).get("git_revision")
    at = f"At revision <code>{escape(str(revision))}</code>: save" if revision else "Save"
    command = f"cpo-ray run config.yaml --run-dir runs/{report['run']}-again"
    parts.append(f"<p>{at} the text below as <code>config.yaml</code>, then</p><pre>{escape(command)}</pre>")
    text = yaml.safe_dump(report["config"], sort_keys=False, allow_unicode=True, width=100)
    parts.append(f"<details><summary>The exact configuration, resolved</summary><pre>{escape(text)}</pre></details>")
    return "".join(parts)


def _grid(heads: Sequence[str], rows: Iterable[Sequence[Cell]], caption: str) -> str:
    """A table whose first column heads its rows; it scrolls by itself where it is too wide."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    lines = []
    for first, *rest in rows:
        cells = [cell if isinstance(cell, tuple) else (cell, "") for cell in rest]
        tail = "".join(f'<td class="{name}">{text}</td>' if name else f"<td>{text}</td>" for text, name in cells)
        lines.append(f'<tr><th scope="row">{first}</th>{tail}</tr>')
    table = f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">{table}</div>'


def _absent(text: str) -> str:
    return f'<p class="absent">{escape(text)}</p>'


def _list(items: Sequence[str]) -> str:
    return ", ".join(escape(item) for item in items)


def _number(value: float | None, form: str) -> str:
    return DASH if value is None else format(value, form).replace("-", "\N{MINUS SIGN}")


def _moment(created: str | None) -> str:
    """2026-01-02T03:04:05Z without what a table does not need."""
    return escape(created[:16].replace("T", " ")) if created else DASH


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return DASH
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    rows = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            rows += _flatten(value, f"{prefix}{key}.")
        else:
            rows.append([escape(f"{prefix}{key}"), escape(str(value))])
    return rows
