"""The report's charts, from its table and curves. A chart without data is not drawn."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from cpo_ray.evaluation.figures import Estimate, Labels, Level, Series, interval_chart, line_chart, running_mean
from cpo_ray.evaluation.page.run import Curve, Run
from cpo_ray.records import CANDIDATE_KINDS

MODEL_COLORS = {"reference": "grey", "mle": "orange", "cpo": "blue"}
KIND_STYLES = dict(
    zip(
        CANDIDATE_KINDS,
        [("amber", ""), ("pink", "7 3"), ("green", "2 2"), ("blue", "9 3 2 3"), ("orange", "5 2"), ("grey", "1 3")],
        strict=True,
    )
)
STEP = "optimizer step"
NATS = "nats per response"
SMOOTH_FROM = 60  # points; shorter curves are drawn as they are

Points = list[tuple[float, float]]


def draw_charts(run: Run, table: Sequence[Mapping[str, Any]], decodings: Sequence[str]) -> dict[str, str]:
    """Every chart that the run has data for: name -> SVG."""
    charts = dict(_result_charts(table, decodings))
    charts.update(_cpo_charts(run))
    charts.update(_likelihood_charts(run.curves))
    return charts


def first_step_loss(run: Run) -> tuple[str, float] | None:
    """What the CPO loss must be at step 1, where policy = reference: its formula and value. None for the joint loss.

    The trainer's own figure counts only the candidates that are not masked, prompt by prompt.
    """
    objective, k = run.config.get("objective") or {}, run.candidates
    if k is None or "ranked" not in objective or objective.get("mle_weight", 0) != 0:
        return None
    formula, value = (f"log {k}!", math.lgamma(k + 1)) if objective["ranked"] else (f"log {k}", math.log(k))
    curve = run.curves.get("cpo")
    logged = curve.train[0].get("expected_loss") if curve is not None and curve.train else None
    if logged is None or math.isclose(logged, value, abs_tol=1e-6):
        return formula, value
    return f"{formula} without the masked", float(logged)


def _result_charts(table: Sequence[Mapping[str, Any]], decodings: Sequence[str]) -> Iterator[tuple[str, str]]:
    level = Level("as good as the ground truth", 0.5)
    for decoding in decodings:
        estimates = [
            Estimate(row["model"], row["win_rate"], row["low"], row["high"], MODEL_COLORS.get(row["model"], "green"))
            for row in table
            if row["decoding"] == decoding and row["win_rate"] is not None
        ]
        if estimates:
            name = f"win-rate-{decoding}"
            labels = Labels(name, f"Win rate, {decoding} decoding", "win rate against the ground truth (95% interval)")
            yield name, interval_chart(labels, estimates, level)
    rates = _over_alpha(table, decodings, "win_rate", lambda row: (row["low"], row["high"]))
    if rates:
        labels = Labels("win-rate-alpha", "Win rate over the merging weight", ALPHA, "win rate (95% interval)")
        yield labels.name, line_chart(labels, rates, level)
    scores = _over_alpha(
        table,
        decodings,
        "mauve",
        lambda row: (row["mauve"] - (row["mauve_deviation"] or 0), row["mauve"] + (row["mauve_deviation"] or 0)),
    )
    if scores:
        labels = Labels(
            "mauve-alpha", "MAUVE over the merging weight", ALPHA, "MAUVE (\N{PLUS-MINUS SIGN} deviation over seeds)"
        )
        yield labels.name, line_chart(labels, scores)


ALPHA = "\N{GREEK SMALL LETTER ALPHA}: weight of MLE (0 is CPO alone, 1 is MLE alone)"


def _over_alpha(
    table: Sequence[Mapping[str, Any]],
    decodings: Sequence[str],
    key: str,
    ends: Callable[[Mapping[str, Any]], tuple[float, float]],
) -> list[Series]:
    """A line per decoding over alpha, where merged models exist."""
    series = []
    for number, decoding in enumerate(decodings):
        rows = [row for row in table if row["decoding"] == decoding and row["alpha"] is not None]
        rows = sorted((row for row in rows if row[key] is not None), key=lambda row: row["alpha"])
        if any(0 < row["alpha"] < 1 for row in rows):
            shift = 0.012 * (number - (len(decodings) - 1) / 2)  # so that whiskers do not cover each other
            color, dash = list(KIND_STYLES.values())[(3, 1, 2, 4, 0)[number % 5]]
            points = [(row["alpha"] + shift, row[key]) for row in rows]
            intervals = [(row["alpha"] + shift, *ends(row)) for row in rows]
            series.append(Series(decoding, points, color, dash if number else "", intervals=intervals))
    return series


def _cpo_charts(run: Run) -> Iterator[tuple[str, str]]:
    curve = run.curves.get("cpo")
    if curve is None:
        return
    expected = first_step_loss(run)
    level = Level(f"{expected[0]} = {expected[1]:.4f}, where it must begin", expected[1]) if expected else None
    yield from _chart(Labels("cpo-loss", "CPO loss", STEP, "loss (nats)"), _both(curve, "loss", "blue"), level)
    margin = Labels(
        "cpo-margin",
        "Reward margin: gold minus mean of negatives",
        STEP,
        "margin of \N{GREEK SMALL LETTER BETA} log-ratios (nats)",
    )
    yield from _chart(margin, _both(curve, "margin", "blue"))
    accuracy = Labels("cpo-accuracy", "Accuracy: the gold has the highest score", STEP, "share of prompts")
    yield from _chart(accuracy, _both(curve, "accuracy", "blue"))
    by_kind = _smooth("gold", _points(curve.train, "gold_logp"), *KIND_STYLES["gold"])
    for kind in CANDIDATE_KINDS[1:]:
        rows = [{"step": row["step"], "value": (row.get("negative_logp") or {}).get(kind)} for row in curve.train]
        by_kind += _smooth(kind, _points(rows, "value"), *KIND_STYLES[kind])
    yield from _chart(Labels("cpo-logp", "Log-prob of the gold and of the negatives (CPO)", STEP, NATS), by_kind)


def _likelihood_charts(curves: Mapping[str, Curve]) -> Iterator[tuple[str, str]]:
    """Next-token loss of the reference and of its continuation, and what CPO and MLE do to the gold's log-prob."""
    for stage, title in (("reference", "Reference: next-token loss"), ("mle", "Continued MLE: next-token loss")):
        if stage in curves:
            series = _both(curves[stage], "loss", MODEL_COLORS[stage])
            yield from _chart(Labels(f"{stage}-loss", title, STEP, "loss (nats per token)"), series)
    gold: list[Series] = []
    for stage, dash in (("mle", "6 3"), ("cpo", "")):
        if stage in curves:
            gold += _smooth(stage, _points(curves[stage].train, "gold_logp"), MODEL_COLORS[stage], dash)
    yield from _chart(Labels("gold-logp", "Log-prob of the gold, from the same reference", STEP, NATS), gold)


def _chart(labels: Labels, series: list[Series], level: Level | None = None) -> Iterator[tuple[str, str]]:
    if series:
        yield labels.name, line_chart(labels, series, level)


def _both(curve: Curve, key: str, color: str) -> list[Series]:
    """Training and, where it was measured, validation."""
    validation = _points(curve.validation, key)
    series = _smooth("training", _points(curve.train, key), color, "")
    return [*series, Series("validation", validation, "pink", "6 3")] if validation else series


def _smooth(name: str, points: Points, color: str, dash: str) -> list[Series]:
    """A long curve is drawn twice: every step faintly, and a running mean."""
    if not points:
        return []
    if len(points) < SMOOTH_FROM:
        return [Series(name, points, color, dash)]
    return [Series(name, points, color, faint=True), Series(name, running_mean(points, len(points) // 20), color, dash)]


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> Points:
    return [
        (float(row["step"]), float(value))
        for row in rows
        if isinstance(value := row.get(key), int | float) and math.isfinite(value)
    ]
