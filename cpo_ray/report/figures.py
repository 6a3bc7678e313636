"""Charts as SVG text, by small pure functions: lines with a legend, and dots with whiskers.

Every chart has a title and a description for screen readers, and no two series differ by colour alone.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from cpo_ray.report.svg import HALO, HEIGHT, LEFT, WIDTH, Labels, PlotArea, format_ticks, svg_document, ticks, whisker

MAX_POINTS = 400
LONGEST_NAME = 22  # characters of a name beside its dot; a longer name is truncated, but complete in the description
CHARACTER = 6.1  # pixels of an average character at the legend's font size
LEVEL_STROKE = 'stroke="var(--text)" stroke-dasharray="2 3"'


@dataclass(frozen=True)
class Series:
    """A line: points by x. With `intervals` (x, low, high), dots and whiskers are drawn as well."""

    name: str
    points: Sequence[tuple[float, float]]
    color: str
    dash: str = ""
    faint: bool = False
    intervals: Sequence[tuple[float, float, float]] = ()


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare with; vertical in interval charts."""

    name: str
    value: float


@dataclass(frozen=True)
class IntervalRow:
    """A row of an interval chart: a value as a dot, and its interval as whiskers."""

    name: str
    value: float
    low: float
    high: float
    color: str
    group: str = ""  # rows of a group are drawn below its name


def line_chart(labels: Labels, series: Sequence[Series], level: Level | None = None) -> str:
    """Draw lines over a numeric x. Non-finite points are left out, long series are thinned.

    Raises ValueError if no point is left.
    """
    drawn = [Series(**{**vars(item), "points": _finite(item.points)}) for item in series]
    drawn = [item for item in drawn if item.points]
    if not drawn:
        raise ValueError(f"{labels.name}: no points to draw")
    xs = [x for item in drawn for x, _ in item.points]
    ys = [y for item in drawn for _, y in item.points]
    ys += [end for item in drawn for _, *ends in item.intervals for end in ends] + ([level.value] if level else [])
    named = [item for item in drawn if not item.faint]
    legend, top = _legend(named)
    padding = 0.06 * (max(xs) - min(xs) or 1.0) if any(item.intervals for item in drawn) else 0.0
    y_range = _widen(ys, 0.05 * (max(ys) - min(ys) or 1.0))
    left = max(LEFT, 30 + CHARACTER * max(map(len, format_ticks(ticks(*y_range))), default=0))
    area = PlotArea(_widen(xs, padding), y_range, top + 6, left=left)
    body = [legend, area.axes(labels)]
    if level:
        y = area.y(level.value)
        body.append(f'<line x1="{area.left}" x2="{WIDTH - area.right}" y1="{y}" y2="{y}" {LEVEL_STROKE}/>')
    body += [_draw_series(item, area) for item in drawn]
    if level:
        anchor = f'x="{WIDTH - area.right - 4}" y="{y - 5 if y - 5 > top + 10 else y + 13:.1f}" text-anchor="end"'
        body.append(f"<text {anchor} {HALO}>{escape(level.name)}</text>")
    texts = [f"{item.name}: {_describe_ends(item)}" for item in named] + ([level.name] if level else [])
    return svg_document(labels, HEIGHT, "; ".join(texts), body)


def interval_chart(labels: Labels, intervals: Sequence[IntervalRow], level: Level) -> str:
    """Draw a row per interval: name, dot and whiskers, and the numbers. All values are shares between 0 and 1.

    Rows with a `group` are drawn below its name; the rows of a group must be consecutive.
    """
    rows = _with_headings(intervals)
    row_height, top = 28, 48
    height = top + row_height * len(rows) + 46
    ends = [end for item in intervals for end in (item.low, item.high)] + [level.value]
    low, high = _widen(ends, 0.06 * (max(ends) - min(ends) or 1.0))
    left = 16 + min(max(len(item.name) for item in intervals), LONGEST_NAME) * 6.9
    area = PlotArea((max(0.0, low), min(1.0, high)), (0, 1), top, left=left, right=116, height=height)
    x = area.x(level.value)
    body = [area.axes(labels, rows=True)]
    body.append(f'<line x1="{x}" x2="{x}" y1="{top - 4}" y2="{height - 44}" {LEVEL_STROKE}/>')
    place = min(max(x, left + len(level.name) * 2.9), WIDTH - len(level.name) * 2.9 - 6)
    body.append(f'<text x="{place:.1f}" y="{top - 9}" text-anchor="middle" {HALO}>{escape(level.name)}</text>')
    for number, item in enumerate(rows):
        y = top + row_height * (number + 0.5)
        if isinstance(item, str):
            body.append(f'<text x="2" y="{y + 6:.1f}" font-weight="600" {HALO}>{escape(_truncate(item, 60))}</text>')
        else:
            body.append(_draw_interval(item, y, area))
    description = "; ".join(
        f"{item.group}{', ' if item.group else ''}{item.name} {item.value:.3f}, from {item.low:.3f} to {item.high:.3f}"
        for item in intervals
    )
    return svg_document(labels, height, f"{description}. The line is at {level.value:g}: {level.name}", body)


def _with_headings(intervals: Sequence[IntervalRow]) -> list[str | IntervalRow]:
    """Put a group's name before its first row."""
    rows: list[str | IntervalRow] = []
    for group, members in itertools.groupby(intervals, key=lambda item: item.group):
        rows += [group] if group else []
        rows += members
    return rows


def thin(points: Sequence[tuple[float, float]], limit: int = MAX_POINTS) -> list[tuple[float, float]]:
    """Keep at most `limit` points: both ends, and the lowest and highest point of each bucket, so that no spike is lost."""
    if len(points) <= limit:
        return list(points)
    buckets = (limit - 2) // 2
    kept = [points[0]]
    inner = points[1:-1]
    for number in range(buckets):
        bucket = inner[number * len(inner) // buckets : (number + 1) * len(inner) // buckets]
        extremes = {min(bucket, key=lambda point: point[1]), max(bucket, key=lambda point: point[1])}
        kept += sorted(extremes)
    return [*kept, points[-1]]


def running_mean(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Return the centred mean over `window` points, fewer at the end. The first point is unchanged.

    At the start the window shrinks on both sides, so that the plot shows the exact value at which a curve begins.
    """
    half = window // 2
    smoothed = []
    for index, (x, _) in enumerate(points):
        before = min(half, index)
        around = points[index - before : index + before + 1]
        smoothed.append((x, sum(y for _, y in around) / len(around)))
    return smoothed


def _legend(series: Sequence[Series]) -> tuple[str, int]:
    """Draw a sample of each line with its name, on as many lines of text as needed. Also return the y where the legend ends."""
    parts, x, y = [], 2.0, 34
    for item in series:
        width = 28 + len(item.name) * CHARACTER + 14
        if x > 2 and x + width - 14 > WIDTH:
            x, y = 2.0, y + 17
        stroke = f'stroke="var(--{item.color})" stroke-width="2.2" stroke-dasharray="{item.dash}"'
        parts.append(f'<line x1="{x:.1f}" x2="{x + 22:.1f}" y1="{y - 4}" y2="{y - 4}" {stroke}/>')
        if item.intervals:
            parts.append(f'<circle cx="{x + 11:.1f}" cy="{y - 4}" r="4" fill="var(--{item.color})"/>')
        parts.append(f'<text x="{x + 28:.1f}" y="{y}" font-size="11.5">{escape(item.name)}</text>')
        x += width
    return "".join(parts), y + 4


def _draw_series(item: Series, area: PlotArea) -> str:
    path = " ".join(f"{area.x(x)},{area.y(y)}" for x, y in thin(item.points))
    style = (
        'stroke-opacity="0.28" stroke-width="1"' if item.faint else f'stroke-width="2" stroke-dasharray="{item.dash}"'
    )
    parts = [f'<polyline points="{path}" fill="none" stroke="var(--{item.color})" stroke-linejoin="round" {style}/>']
    for x, low, high in item.intervals:
        parts.append(whisker(area.x(x), area.y(low), area.x(x), area.y(high), item.color))
    if item.intervals or len(item.points) == 1:
        dots = [(area.x(x), area.y(y)) for x, y in item.points]
        parts += [f'<circle cx="{x}" cy="{y}" r="4.5" fill="var(--{item.color})"/>' for x, y in dots]
    return "".join(parts)


def _draw_interval(item: IntervalRow, y: float, area: PlotArea) -> str:
    """Draw name, whiskers, dot and numbers of one row."""
    name, numbers = escape(_truncate(item.name, LONGEST_NAME)), f"{item.value:.3f}  [{item.low:.3f}, {item.high:.3f}]"
    return (
        f'<text x="{area.left - 8:.1f}" y="{y + 4}" text-anchor="end">{name}</text>'
        f"{whisker(area.x(item.low), y, area.x(item.high), y, item.color)}"
        f'<circle cx="{area.x(item.value)}" cy="{y}" r="5" fill="var(--{item.color})"/>'
        f'<text x="{WIDTH - 2}" y="{y + 4}" text-anchor="end" font-size="10">{numbers}</text>'
    )


def _describe_ends(item: Series) -> str:
    """Describe the first and the last point."""
    (first_x, first), (last_x, last) = item.points[0], item.points[-1]
    return f"{first:.4g} at {first_x:g}, {last:.4g} at {last_x:g}"


def _truncate(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [point for point in points if math.isfinite(point[0]) and math.isfinite(point[1])]


def _widen(values: Sequence[float], by: float) -> tuple[float, float]:
    low, high = min(values) - by, max(values) + by
    return (low, high) if high > low else (low - 0.5, high + 0.5)
