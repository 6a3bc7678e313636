"""The report's results as HTML: the headline, the paper's tables, and every model with all its numbers."""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

from cpo_ray.report.examples import render_examples
from cpo_ray.report.findings import format_p, signed
from cpo_ray.report.markup import (
    DASH,
    Cell,
    comma_list,
    format_number,
    format_time,
    grid,
    missing_notice,
    scrolling_table,
)

ReportFacts = Mapping[str, Any]  # the content of report.json

LOCAL_JUDGES = {"oracle", "overlap"}  # see evaluation/oracle.py


def render_result(report: ReportFacts) -> str:
    """Render the headline, the judges, whether the trainings were alike, and what is missing."""
    best_of = (
        "Where several models were trained with CPO, the best was picked on these same prompts, which flatters it."
    )
    judges = sorted({judge for run in report["runs"] for judge in run["judges"]})
    by = f"Judged by <b>{comma_list(judges)}</b>, both the answer and the ground truth shown. " if judges else ""
    if set(judges) & LOCAL_JUDGES:
        by += "This judge knows the ground truth to be right, so an answer can tie with it and never win: 50% is the most. "
    if len(judges) > 1:
        by += "Verdicts of different judges are not compared. "
    note = f"{by}A tie counts as half; comparisons are paired, prompt by prompt. {best_of}" if report["table"] else ""
    parts = [f'<p class="headline">{escape(report["headline"])}</p>']
    parts += [f"<p>{escape(sentence)}</p>" for sentence in report["sentences"]]
    parts.append(render_examples(report["examples"]))
    parts.append(f'<p class="note">{note}</p>' if note else "")
    if len(report["runs"]) > 1:
        parts.append(_runs_table(report["runs"]))
    for run in report["runs"]:
        if run["comparison"]:
            of = f"{escape(run['label'])}: " if len(report["runs"]) > 1 else ""
            parts.append(f"<p>{of}{escape(run['comparison']['sentence'])}</p>")
        if run["missing"]:
            which = f"The run {escape(run['label'])}" if len(report["runs"]) > 1 else "This run directory"
            parts.append(f"<p>{which} does not hold: {comma_list(run['missing'])}. Their sections say so.</p>")
    return "".join(parts)


def _runs_table(runs: Sequence[Mapping[str, Any]]) -> str:
    rows: list[list[Cell]] = [
        [
            escape(run["label"]),
            (comma_list(run["methods"]) or DASH, "left"),
            (escape(run["base"]), "left"),
            (escape(run["source"]), "left"),
            (comma_list(run["judges"]) or DASH, "left"),
            format_time(run["finished"]),
        ]
        for run in runs
    ]
    heads = ["run", "trained by", "base model", "data", "judge", "finished, UTC"]
    return '<div class="words">' + grid(heads, rows, "The runs of this report") + "</div>"


def render_trials(runs: Sequence[Mapping[str, Any]]) -> str:
    """Render the learning rates that were tried, with the loss by which each model was chosen; an empty string if none were."""
    tables = []
    for run in runs:
        trials = run["comparison"]["trials"] if run["comparison"] else {}
        rows: list[list[Cell]] = [
            [escape(model), *(_bold(f"{each[key]:{form}}", strong=each is best) for key, form in TRIAL_COLUMNS)]
            for model, tried in trials.items()
            for best in [min(tried, key=lambda each: each["validation_loss"], default=None)]
            for each in tried
        ]
        if rows:
            of = f" of {run['label']}" if len(runs) > 1 else ""
            tables.append(grid(["model", "learning rate", "validation loss"], rows, f"Learning rates tried{of}"))
    note = "Each rate is one whole training. Bold: the rate that was kept. Losses of CPO and MLE are not of one scale."
    return "".join(tables) + (f'<p class="note">{note}</p>' if tables else "")


TRIAL_COLUMNS = (("learning_rate", "g"), ("validation_loss", ".4f"))


def render_paper(report: ReportFacts) -> str:
    """Render the tables of the paper that the runs have numbers for."""
    if not report["paper"]:
        return missing_notice("No verdicts and no MAUVE scores: there is nothing to lay out as the paper does.")
    return "".join(_paper_table(table, several=len(report["runs"]) > 1) for table in report["paper"]) + PAPER_NOTE


PAPER_NOTE = """<p class="note">A column per model, as in the paper. MixN: 3 batch, 5 meanfield and 3 truncation negatives; any
other mixture is named by its counts of autoregressive (AN), batch (BN), meanfield (MN), truncation (TN) and unhelpful (UN)
negatives. R: candidates ranked by similarity to the truth;
\N{GREEK SMALL LETTER ALPHA}: weight of MLE in the merged model (0 is CPO alone). Points against MLE are paired on the same
prompts, with Holm-adjusted p-values; n.s.: not significant at 0.05. Bold: the highest, or what is closest to the truth's own
value; a difference of a text metric is bold if its interval, over prompts alone, excludes 0.</p>"""


METRICS = {  # metric -> title of the table, name of its row
    "win_rate": ("Win rate against the ground truth", "win rate"),
    "reward_rate": ("Reward model's preference over the ground truth", "preferred"),
    "mauve": ("MAUVE", "MAUVE"),
    "rep_4": ("Repetition", "rep-4"),
    "distinct_2": ("Diversity", "distinct-2"),
    "similarity": ("Similarity to the truth", "cosine"),
}


def _paper_table(table: Mapping[str, Any], *, several: bool) -> str:
    columns = table["columns"]
    quantity, row_name = METRICS[table["metric"]]
    title = f"{quantity}: {table['base']} on {table['source']}, {table['decoding']} decoding"
    head = '<tr><th scope="col">method</th>'
    for (run, method), group in groupby(columns, key=lambda column: (column["run"], column["method"])):
        under = f"<br><small>{escape(run)}</small>" if several else ""
        head += f'<th scope="colgroup" colspan="{len(list(group))}">{escape(method)}{under}</th>'
    best = _best(table)
    alphas = [DASH if column["alpha"] is None else f"{column['alpha']:g}" for column in columns]
    rows: list[list[Cell]] = [["\N{GREEK SMALL LETTER ALPHA}", *alphas]]
    rows.append([row_name, *(_bold(f"{c['value']:.3f}", strong=c["value"] == best) for c in columns)])
    if any(column["low"] is not None for column in columns):
        rows.append(["95% interval", *(f"<small>{c['low']:.3f}<br>to {c['high']:.3f}</small>" for c in columns)])
    if any(column["difference"] for column in columns):
        rows.append(["points vs MLE", *(_points(column["difference"]) for column in columns)])
    if any(column["to_baseline"] for column in columns):
        rows.append(["minus MLE", *(_change(column["to_baseline"]) for column in columns)])
    if any(column["deviation"] is not None for column in columns):
        rows.append(
            ["deviation over seeds", *(f"<small>{format_number(c['deviation'], '.3f')}</small>" for c in columns)]
        )
    note = f"Laid out as the paper's {table['layout']}."
    if table["judges"]:
        note += f" Judged by {comma_list(table['judges'])}."
    if table["truth"] is not None:
        note += f" The truth has {table['truth']:.3f}."
    if table["left_out"]:
        note += f" Not shown, made with the settings of an MLE model that is: {comma_list(table['left_out'])}."
    body = f'<div class="paper">{scrolling_table(head + "</tr>", rows, title)}</div>'
    return f'<h3>{escape(title)}</h3>{body}<p class="note">{note}</p>'


def _best(table: Mapping[str, Any]) -> float | None:
    """The value that is bold: the highest, or the closest to the truth's if the truth has one; None if all are equal."""
    values, truth = [column["value"] for column in table["columns"]], table["truth"]
    if max(values) == min(values):
        return None
    return max(values) if truth is None else min(values, key=lambda value: abs(value - truth))


def _change(estimate: Mapping[str, Any] | None) -> str:
    """A difference to MLE with its interval; bold if that excludes 0."""
    if estimate is None or estimate["low"] is None:
        return DASH
    value, low, high = (format_number(estimate[key], "+.3f") for key in ("value", "low", "high"))
    return f"{_bold(value, strong=estimate['low'] > 0 or estimate['high'] < 0)}<br><small>{low}<br>to {high}</small>"


def _bold(text: str, *, strong: bool) -> str:
    return f"<b>{text}</b>" if strong else text


def _points(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return DASH
    strength = format_p(difference["p_adjusted"]) if difference["significant"] else "n.s."
    return f"{signed(100 * difference['value'])}<br>{_strength(difference, strength)}"


def render_models(report: ReportFacts) -> str:
    """Render every model with all its numbers, one table per decoding."""
    if not report["table"]:
        return missing_notice("No answers, verdicts or MAUVE scores: generation has not run.")
    parts, other_note = [], ""
    for decoding in report["decodings"]:
        rows_of_decoding = [row for row in report["table"] if row["decoding"] == decoding]
        rows = [*map(_model_row, rows_of_decoding), *_truth_rows(report["runs"])]
        parts.append(f"<h3>{escape(decoding)} decoding</h3>" + grid(MODEL_HEADS, rows, f"Results, {decoding} decoding"))
        others = [cells for cells in map(_other_row, rows_of_decoding) if set(cells[1:]) != {DASH}]
        if others:
            parts.append(grid(OTHER_HEADS, others, f"Other measures, {decoding} decoding"))
            other_note = OTHER_NOTE
    return "".join(parts) + MODEL_NOTE + other_note


def _truth_rows(runs: Sequence[Mapping[str, Any]]) -> list[list[Cell]]:
    """Return rows with the ground truth's mean length: one row if it is the same in all runs."""
    lengths = {run["label"]: run["ground_truth_mean_length"] for run in runs}
    if len(set(lengths.values())) == 1:
        lengths = {"": lengths[runs[0]["label"]]}
    return [
        [f"{escape(label)}{': ' if label else ''}ground truth", *[DASH] * 6, format_number(length, ".1f")]
        for label, length in lengths.items()
    ]


MODEL_HEADS = [
    "model",
    "win rate [95%]",
    "vs MLE, points",
    "wins / ties / losses",
    "invalid",
    "flips",
    "MAUVE",
    "words",
]
OTHER_HEADS = [
    "other measures",
    "win rate at equal length [95%]",
    "reward model prefers it [95%]",
    "judge takes the first [95%]",
]
MODEL_NOTE = """<p class="note">Win rate against the ground truth, with Tango's score interval (without ties: Wilson's). The
difference to continued MLE is paired on the same prompts: bootstrap interval, exact sign-flip test, Holm-adjusted over the
models of a decoding; n.s.: not significant at 0.05. Flips: prompts on which the judge changed its mind with the order, counted
as ties. Words: mean length of an answer.</p>"""
OTHER_NOTE = """<p class="note">At equal length: what a logistic regression on the difference in length gives where
there is none. The reward model, like the judge, compares
with the ground truth. A judge that position does not sway takes what it reads first half of the time.</p>"""


def _model_row(row: Mapping[str, Any]) -> list[Cell]:
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
            format_number(row["flip_rate"], ".1%"),
        ]
    return [escape(row["label"]), *judged, mauve, format_number(row["mean_length"], ".1f")]


def _other_row(row: Mapping[str, Any]) -> list[Cell]:
    reward = {key: row[f"reward_{key}"] for key in ("rate", "low", "high")}
    found = (row["length_controlled"], reward if row["reward_rate"] is not None else None, row["position_bias"])
    return [escape(row["label"]), *(_interval(item) if item else DASH for item in found)]


def _interval(item: Mapping[str, float]) -> str:
    return f"{item['rate']:.3f} <small>[{item['low']:.3f}, {item['high']:.3f}]</small>"


def _difference(row: Mapping[str, Any]) -> str:
    difference = row["difference_to_mle"]
    if difference is None:
        return "baseline" if row["is_baseline"] else DASH
    low, high = (signed(100 * difference[key]) for key in ("low", "high"))
    strength = format_p(difference["p_adjusted"]) if difference["significant"] else "n.s."
    compared = (
        f"against {difference['baseline']}: {difference['n']} prompts compared, {difference['excluded']} without a "
        "verdict on both sides left out"
    )
    return (
        f'<span title="{escape(compared)}">{signed(100 * difference["value"])} <small>[{low}, {high}]</small> '
        f"{_strength(difference, strength)}</span>"
    )


def _strength(difference: Mapping[str, Any], text: str) -> str:
    direction = "better" if difference["value"] > 0 else "worse"
    return f'<span class="{direction if difference["significant"] else "unsure"}">{text}</span>'
