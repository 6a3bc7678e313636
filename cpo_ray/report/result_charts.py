"""Charts of results: win rates by model, by decoding and by method (figure 1), win rates and MAUVE over alpha (figure 2)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from cpo_ray.report.figures import IntervalRow, Level, Series, interval_chart, line_chart
from cpo_ray.report.run_contents import RunContents, all_decodings
from cpo_ray.report.svg import Labels

ResultRow = Mapping[str, Any]  # a findings.TableRow

MODEL_COLORS = {"reference": "grey", "mle": "orange", "cpo": "blue"}
RATE = "win rate against the ground truth (95% interval)"
ALPHA = "\N{GREEK SMALL LETTER ALPHA}: weight of MLE (0 is CPO alone, 1 is MLE alone)"
EVEN = Level("as good as the ground truth", 0.5)


def draw_results(runs: Sequence[RunContents], table: Sequence[ResultRow]) -> Iterator[tuple[str, str]]:
    """Yield (name, SVG) of every chart that the rows have data for."""
    decodings = all_decodings(runs)
    judged = [row for row in table if row["win_rate"] is not None]
    yield from _by_model(judged, decodings, several=len(runs) > 1)
    yield from _by_decoding(judged, decodings)
    yield from _by_negatives(judged, decodings)
    rates = _over_alpha(runs, table, "win_rate", lambda row: (row["low"], row["high"]))
    if rates:
        labels = Labels("win-rate-alpha", "Win rate over the merging weight", ALPHA, "win rate (95% interval)")
        yield labels.name, line_chart(labels, rates, EVEN)
    scores = _over_alpha(runs, table, "mauve", _seeds)
    if scores:
        labels = Labels(
            "mauve-alpha", "MAUVE over the merging weight", ALPHA, "MAUVE (\N{PLUS-MINUS SIGN} deviation over seeds)"
        )
        yield labels.name, line_chart(labels, scores)


def style_of(number: int) -> tuple[str, str]:
    """Return the colour and dash of a line by its number. The first thirty are all different."""
    colors, dashes = ("blue", "orange", "green", "pink", "amber", "grey"), ("", "7 3", "2 2", "9 3 2 3", "1 3")
    return colors[number % len(colors)], dashes[(number + number // len(colors)) % len(dashes)]


def _by_model(judged: Sequence[ResultRow], decodings: Sequence[str], *, several: bool) -> Iterator[tuple[str, str]]:
    """Draw a chart per decoding, with every model."""
    for decoding in decodings:
        intervals = [
            _interval_row(row, row["model"], row["run"] if several else "")
            for row in judged
            if row["decoding"] == decoding
        ]
        if intervals:
            name = f"win-rate-{decoding}"
            yield name, interval_chart(Labels(name, f"Win rate, {decoding} decoding", RATE), intervals, EVEN)


def _by_decoding(judged: Sequence[ResultRow], decodings: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Draw the first half of figure 1: MLE and CPO under every decoding."""
    intervals = [
        _interval_row(row, row["label"], f"{decoding} decoding")
        for decoding in decodings
        for row in judged
        if row["decoding"] == decoding and row["model"] in ("mle", "cpo")
    ]
    if len({item.group for item in intervals}) > 1:
        labels = Labels("win-rate-decodings", "Win rate by decoding (as figure 1)", RATE)
        yield labels.name, interval_chart(labels, intervals, EVEN)


def _by_negatives(judged: Sequence[ResultRow], decodings: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Draw the second half of figure 1: runs with different negatives, under the first decoding."""
    trained = [row for row in judged if row["decoding"] == decodings[0] and row["model"] == "cpo"]
    if len({row["method"] for row in trained}) < 2:
        return
    plain = [row for row in judged if row["decoding"] == decodings[0] and row["is_baseline"]]
    used = {row["difference_to_mle"]["baseline"] for row in trained if row["difference_to_mle"]}
    baselines = [row for row in plain if row["label"] in used]
    order = list(dict.fromkeys(row["run"] for row in judged))
    rows = sorted([*baselines, *trained], key=lambda row: order.index(row["run"]))
    title = f"by method, {decodings[0]} decoding (as figure 1)"
    labels = Labels("win-rate-negatives", f"Win rate {title}", RATE)
    yield labels.name, interval_chart(labels, [_interval_row(row, row["method"], row["run"]) for row in rows], EVEN)
    preferred = [
        _interval_row(row, row["method"], row["run"], "reward_rate", "reward_low", "reward_high")
        for row in rows
        if row["reward_rate"] is not None
    ]
    if preferred:
        labels = Labels(
            "win-rate-reward", f"Reward model {title}", "share of answers preferred to the truth (95% interval)"
        )
        yield labels.name, interval_chart(labels, preferred, EVEN)


def _interval_row(
    row: ResultRow, name: str, group: str, value: str = "win_rate", low: str = "low", high: str = "high"
) -> IntervalRow:
    return IntervalRow(name, row[value], row[low], row[high], MODEL_COLORS.get(row["model"], "green"), group)


def _seeds(row: ResultRow) -> tuple[float, float]:
    deviation = row["mauve_deviation"] or 0.0
    return row["mauve"] - deviation, row["mauve"] + deviation


def _over_alpha(
    runs: Sequence[RunContents], table: Sequence[ResultRow], key: str, ends: Callable[[ResultRow], tuple[float, float]]
) -> list[Series]:
    """Return a line over alpha per decoding of one run, or per run under the first decoding, if it has merged models."""
    decodings = all_decodings(runs)
    if len(runs) == 1:
        lines = [(decoding, runs[0].label, decoding) for decoding in decodings]
    else:
        lines = [(run.label, run.label, decodings[0]) for run in runs if decodings]
    drawn = []
    for number, (name, run, decoding) in enumerate(lines):
        rows = [row for row in table if (row["run"], row["decoding"]) == (run, decoding) and row["alpha"] is not None]
        rows = sorted((row for row in rows if row[key] is not None), key=lambda row: row["alpha"])
        if any(0 < row["alpha"] < 1 for row in rows):
            drawn.append((name, *style_of(number), rows))
    series = []
    for number, (name, color, dash, rows) in enumerate(drawn):
        shift = 0.012 * (number - (len(drawn) - 1) / 2)  # so that whiskers do not overlap
        points = [(row["alpha"] + shift, row[key]) for row in rows]
        intervals = [(row["alpha"] + shift, *ends(row)) for row in rows]
        series.append(Series(name, points, color, dash, intervals=intervals))
    return series
