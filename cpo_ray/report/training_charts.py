"""Charts of training, and the function that draws all charts. A chart without data is not drawn."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from cpo_ray.records import NEGATIVE_KINDS
from cpo_ray.report.figures import Level, Series, line_chart, running_mean
from cpo_ray.report.method import DEFAULT_LOSS
from cpo_ray.report.result_charts import MODEL_COLORS, draw_results, style_of
from cpo_ray.report.run_contents import Curve, RunContents
from cpo_ray.report.svg import Labels

KIND_STYLES = {
    "gold": ("amber", ""),
    "autoregressive": ("pink", "7 3"),
    "greedy": ("pink", "3 3"),
    "batch": ("green", "2 2"),
    "meanfield": ("blue", "9 3 2 3"),
    "truncation": ("orange", "5 2"),
    "unhelpful": ("grey", "1 3"),
}
STEP = "optimizer step"
NATS = "nats per response"
MARGIN = "margin of \N{GREEK SMALL LETTER BETA} log-ratios (nats)"
SHARED = (  # name, title, stage, key, unit of the charts with one line per run
    ("cpo-loss", "CPO loss", "cpo", "loss", "loss (nats)"),
    ("cpo-margin", "Reward margin: gold minus mean of negatives", "cpo", "margin", MARGIN),
    ("cpo-accuracy", "Accuracy: the gold has the highest score", "cpo", "accuracy", "share of prompts"),
    ("gold-logp", "Log-prob of the gold under CPO", "cpo", "gold_logp", NATS),
    ("mle-loss", "Continued MLE: next-token loss", "mle", "loss", "loss (nats per token)"),
    ("reference-loss", "Reference: next-token loss", "reference", "loss", "loss (nats per token)"),
)
SMOOTH_FROM = 60  # points; shorter curves are drawn as they are

CurvePoints = list[tuple[float, float]]
KindStyles = Mapping[str, tuple[str, str]]  # kind of candidate -> colour and dash


def draw_charts(runs: Sequence[RunContents], table: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Draw every chart that the runs have data for: name -> SVG. Several runs are drawn into the same charts."""
    charts = dict(draw_results(runs, table))
    if len(runs) == 1:
        styles = style_kinds([*runs[0].kinds, *_kinds_in(runs[0].curves.get("cpo"))])
        charts.update(_cpo_charts(runs[0], styles))
        charts.update(_likelihood_charts(runs[0].curves))
        charts.update(_histograms(runs[0].kinds, styles))
    else:
        charts.update(_shared_charts(runs))
    return charts


def style_kinds(kinds: Iterable[str]) -> KindStyles:
    """Assign a style to each kind: built-in kinds have fixed styles, a user's kinds get styles that no other kind has."""
    fixed = set(KIND_STYLES.values())
    free = (style for style in map(style_of, itertools.count()) if style not in fixed)
    return {**KIND_STYLES, **dict(zip(sorted(set(kinds) - KIND_STYLES.keys()), free, strict=False))}


def first_step_loss(run: RunContents) -> tuple[str, float] | None:
    """Return formula and value of the expected CPO loss at step 1, where policy = reference. None for the joint loss,
    and for LiPO and SimPO, whose first loss depends on the groups.

    The value that the trainer logs counts only the candidates that are not masked, prompt by prompt.
    """
    objective, k = run.config.get("objective") or {}, run.candidates
    loss = objective.get("loss", DEFAULT_LOSS)
    if k is None or "ranked" not in objective or objective.get("mle_weight", 0) != 0 or loss in {"lipo", "simpo"}:
        return None
    formula, value = f"log {k}", math.log(k)
    if loss == "nca":
        formula, value = "2 log 2", 2 * math.log(2)
    elif loss == DEFAULT_LOSS and objective["ranked"]:
        formula, value = f"log {k}!", math.lgamma(k + 1)
    curve = run.curves.get("cpo")
    logged = curve.train[0].get("expected_loss") if curve is not None and curve.train else None
    if logged is None or math.isclose(logged, value, abs_tol=1e-6):
        return formula, value
    return f"{formula} without the masked", float(logged)


def _kinds_in(curve: Curve | None) -> list[str]:
    """Return the kinds of negatives in the training metrics: built-in kinds first, then a user's kinds by name."""
    present = {kind for row in (curve.train if curve else ()) for kind in row.get("negative_logp") or {}}
    return [*(kind for kind in NEGATIVE_KINDS if kind in present), *sorted(present - {*NEGATIVE_KINDS})]


def _cpo_charts(run: RunContents, styles: KindStyles) -> Iterator[tuple[str, str]]:
    curve = run.curves.get("cpo")
    if curve is None:
        return
    expected = first_step_loss(run)
    level = Level(f"{expected[0]} = {expected[1]:.4f}, where it must begin", expected[1]) if expected else None
    yield from _chart(
        Labels("cpo-loss", "CPO loss", STEP, "loss (nats)"), _with_validation(curve, "loss", "blue"), level
    )
    margin = Labels(
        "cpo-margin",
        "Reward margin: gold minus mean of negatives",
        STEP,
        MARGIN,
    )
    yield from _chart(margin, _with_validation(curve, "margin", "blue"))
    accuracy = Labels("cpo-accuracy", "Accuracy: the gold has the highest score", STEP, "share of prompts")
    yield from _chart(accuracy, _with_validation(curve, "accuracy", "blue"))
    by_kind = _smooth("gold", _points(curve.train, "gold_logp"), *styles["gold"])
    for kind in _kinds_in(curve):
        rows = [{"step": row["step"], "value": (row.get("negative_logp") or {}).get(kind)} for row in curve.train]
        by_kind += _smooth(kind, _points(rows, "value"), *styles[kind])
    yield from _chart(Labels("cpo-logp", "Log-prob of the gold and of the negatives (CPO)", STEP, NATS), by_kind)


def _likelihood_charts(curves: Mapping[str, Curve]) -> Iterator[tuple[str, str]]:
    """Draw the next-token loss of reference and continued MLE, and the gold's log-prob under CPO and MLE."""
    for stage, title in (("reference", "Reference: next-token loss"), ("mle", "Continued MLE: next-token loss")):
        if stage in curves:
            series = _with_validation(curves[stage], "loss", MODEL_COLORS[stage])
            yield from _chart(Labels(f"{stage}-loss", title, STEP, "loss (nats per token)"), series)
    gold: list[Series] = []
    for stage, dash in (("mle", "6 3"), ("cpo", "")):
        if stage in curves:
            gold += _smooth(stage, _points(curves[stage].train, "gold_logp"), MODEL_COLORS[stage], dash)
    yield from _chart(Labels("gold-logp", "Log-prob of the gold, from the same reference", STEP, NATS), gold)


def _histograms(kinds: Mapping[str, Mapping[str, Any]], styles: KindStyles) -> Iterator[tuple[str, str]]:
    """Draw the distributions of lengths and similarities, a line per kind, without the gold's similarity to itself."""
    for name, key, title, x in (
        ("sampling-length", "length", "Length of the candidates", "tokens, EOS included"),
        ("sampling-similarity", "similarity", "Similarity of the negatives to the gold", "cosine of the embeddings"),
    ):
        series: list[Series] = []
        for kind, found in kinds.items():
            histogram = (found.get(key) or {}).get("histogram")
            if histogram and (key, kind) != ("similarity", "gold"):
                series.append(Series(kind, _bins(histogram), *styles[kind]))
        yield from _chart(Labels(name, title, x, "share of candidates per bin"), series)


def _bins(histogram: Mapping[str, Any]) -> CurvePoints:
    """Return the middle of each bin and its share, without the empty bins at both ends."""
    low, counts = histogram["low"], histogram["counts"]
    width = (histogram["high"] - low) / len(counts)
    filled = [index for index, count in enumerate(counts) if count]
    within = range(max(filled[0] - 1, 0), min(filled[-1] + 2, len(counts))) if filled else range(0)
    return [(low + (index + 0.5) * width, counts[index] / sum(counts)) for index in within]


def _shared_charts(runs: Sequence[RunContents]) -> Iterator[tuple[str, str]]:
    """Draw one line per run, as a running mean if it is long."""
    for name, title, stage, key, unit in SHARED:
        series: list[Series] = []
        for number, run in enumerate(runs):
            if stage in run.curves:
                color, dash = style_of(number)
                lines = _smooth(run.label, _points(run.curves[stage].train, key), color, dash)
                series += [line for line in lines if not line.faint]
        yield from _chart(Labels(name, title, STEP, unit), series)


def _chart(labels: Labels, series: list[Series], level: Level | None = None) -> Iterator[tuple[str, str]]:
    if series:
        yield labels.name, line_chart(labels, series, level)


def _with_validation(curve: Curve, key: str, color: str) -> list[Series]:
    """Return the lines of training and, if it was measured, validation."""
    validation = _points(curve.validation, key)
    series = _smooth("training", _points(curve.train, key), color, "")
    return [*series, Series("validation", validation, "pink", "6 3")] if validation else series


def _smooth(name: str, points: CurvePoints, color: str, dash: str) -> list[Series]:
    """Return a short curve as it is, and a long curve twice: every step faintly, and a running mean."""
    if not points:
        return []
    if len(points) < SMOOTH_FROM:
        return [Series(name, points, color, dash)]
    return [Series(name, points, color, faint=True), Series(name, running_mean(points, len(points) // 20), color, dash)]


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> CurvePoints:
    return [
        (float(row["step"]), float(value))
        for row in rows
        if isinstance(value := row.get(key), int | float) and math.isfinite(value)
    ]
