"""Charts as SVG text, by small pure functions: lines with a legend, and dots with whiskers.

Colours are CSS variables, so that a page's theme applies; `standalone` writes the light ones out, for a file of its own.
Every chart has a title and a description for those who do not see it, and no two series differ by colour alone.
"""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

PALETTES: dict[str, dict[str, str]] = {
    "light": {
        "page": "#f7f6f3", "surface": "#ffffff", "text": "#1d1c1a", "muted": "#5e5a53", "line": "#dedad2",
        "accent": "#0b5cad", "blue": "#0b6bbf", "orange": "#b84a05", "green": "#0a7f5c", "pink": "#a8488a",
        "amber": "#8f6500", "grey": "#6b6a67",
    },
    "dark": {
        "page": "#131519", "surface": "#1b1e24", "text": "#e9e7e2", "muted": "#a5a198", "line": "#343841",
        "accent": "#78b7f5", "blue": "#5fb0f5", "orange": "#ff9152", "green": "#45c99d", "pink": "#e692c5",
        "amber": "#e8b73f", "grey": "#a9a7a2",
    },
}  # fmt: skip

WIDTH, HEIGHT = 400, 270
MAX_POINTS = 400
LEFT = 58  # pixels left of the plotting area, more where its numbers are long
LONGEST_NAME = 22  # characters of a name beside its dot; what is longer is cut, and whole in the description
CHARACTER = 6.1  # pixels of an average character at the legend's font size
TITLE, BOLD = 13.5, 0.6  # a title's font size, and the width of a bold character in font sizes


@dataclass(frozen=True)
class Series:
    """A line: points by x. With `intervals` (x, low, high) it also has dots and whiskers."""

    name: str
    points: Sequence[tuple[float, float]]
    color: str
    dash: str = ""
    faint: bool = False
    intervals: Sequence[tuple[float, float, float]] = ()


@dataclass(frozen=True)
class Level:
    """A horizontal (in interval charts: vertical) line that something is compared with."""

    name: str
    value: float


@dataclass(frozen=True)
class Estimate:
    """A dot with its whiskers, in an interval chart."""

    name: str
    value: float
    low: float
    high: float
    color: str
    group: str = ""  # estimates of a group stand under its name


@dataclass(frozen=True)
class Labels:
    """What is written around a chart; `name` is its file name and the stem of its element ids."""

    name: str
    title: str
    x: str
    y: str = ""


def line_chart(labels: Labels, series: Sequence[Series], level: Level | None = None) -> str:
    """Lines over a numeric x. Non-finite points are left out, long series are thinned.

    Raises ValueError where no point is left.
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
    left = max(LEFT, 30 + CHARACTER * max(map(len, _numbers(ticks(*y_range))), default=0))
    frame = _Frame(_widen(xs, padding), y_range, top + 6, left=left)
    body = [legend, frame.axes(labels)]
    if level:
        y = frame.y(level.value)
        body.append(f'<line x1="{frame.left}" x2="{WIDTH - frame.right}" y1="{y}" y2="{y}" {_LEVEL}/>')
    body += [_draw(item, frame) for item in drawn]
    if level:
        anchor = f'x="{WIDTH - frame.right - 4}" y="{y - 5 if y - 5 > top + 10 else y + 13:.1f}" text-anchor="end"'
        body.append(f"<text {anchor} {_HALO}>{escape(level.name)}</text>")
    told = [f"{item.name}: {_told(item)}" for item in named] + ([level.name] if level else [])
    return _svg(labels, HEIGHT, "; ".join(told), body)


def interval_chart(labels: Labels, estimates: Sequence[Estimate], level: Level) -> str:
    """One row per estimate: name, dot and whiskers, and the numbers. All values are shares between 0 and 1.

    Estimates with a `group` stand under its name; those of a group must follow each other.
    """
    rows = _rows(estimates)
    row, top = 28, 48
    height = top + row * len(rows) + 46
    ends = [end for item in estimates for end in (item.low, item.high)] + [level.value]
    low, high = _widen(ends, 0.06 * (max(ends) - min(ends) or 1.0))
    left = 16 + min(max(len(item.name) for item in estimates), LONGEST_NAME) * 6.9
    frame = _Frame((max(0.0, low), min(1.0, high)), (0, 1), top, left=left, right=116, height=height)
    x = frame.x(level.value)
    body = [frame.axes(labels, rows=True)]
    body.append(f'<line x1="{x}" x2="{x}" y1="{top - 4}" y2="{height - 44}" {_LEVEL}/>')
    place = min(max(x, left + len(level.name) * 2.9), WIDTH - len(level.name) * 2.9 - 6)
    body.append(f'<text x="{place:.1f}" y="{top - 9}" text-anchor="middle" {_HALO}>{escape(level.name)}</text>')
    for number, item in enumerate(rows):
        y = top + row * (number + 0.5)
        if isinstance(item, str):
            body.append(f'<text x="2" y="{y + 6:.1f}" font-weight="600" {_HALO}>{escape(_cut(item, 60))}</text>')
            continue
        body.append(
            f'<text x="{left - 8:.1f}" y="{y + 4}" text-anchor="end">{escape(_cut(item.name, LONGEST_NAME))}</text>'
        )
        body.append(_whisker(frame.x(item.low), y, frame.x(item.high), y, item.color))
        body.append(f'<circle cx="{frame.x(item.value)}" cy="{y}" r="5" fill="var(--{item.color})"/>')
        numbers = f"{item.value:.3f}  [{item.low:.3f}, {item.high:.3f}]"
        body.append(f'<text x="{WIDTH - 2}" y="{y + 4}" text-anchor="end" font-size="10">{numbers}</text>')
    told = "; ".join(
        f"{item.group}{', ' if item.group else ''}{item.name} {item.value:.3f}, from {item.low:.3f} to {item.high:.3f}"
        for item in estimates
    )
    return _svg(labels, height, f"{told}. The line is at {level.value:g}: {level.name}", body)


def _rows(estimates: Sequence[Estimate]) -> list[str | Estimate]:
    """A group's name before its first estimate."""
    rows: list[str | Estimate] = []
    for group, members in itertools.groupby(estimates, key=lambda item: item.group):
        rows += [group] if group else []
        rows += members
    return rows


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"


def standalone(svg: str) -> str:
    """The same chart as a file: light colours written out, on a background."""
    palette = PALETTES["light"]
    colored = re.sub(r"var\(--([a-z]+)\)", lambda match: palette[match[1]], svg)
    colored = colored.replace("currentColor", palette["text"])
    head, rest = colored.split(">", 1)
    return f'{head}><rect width="100%" height="100%" fill="{palette["surface"]}"/>{rest}\n'


def thin(points: Sequence[tuple[float, float]], limit: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most `limit` points: the lowest and the highest of each stretch, so that no spike is lost; both ends stay."""
    if len(points) <= limit:
        return list(points)
    stretches = (limit - 2) // 2
    kept = [points[0]]
    inner = points[1:-1]
    for number in range(stretches):
        stretch = inner[number * len(inner) // stretches : (number + 1) * len(inner) // stretches]
        extremes = {min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])}
        kept += sorted(extremes)
    return [*kept, points[-1]]


def running_mean(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Centred mean over `window` points, of what there is at the end; the first point stays as it is.

    At the start the window shrinks on both sides, because where a curve begins is a fact worth seeing exactly.
    """
    half = window // 2
    smoothed = []
    for index, (x, _) in enumerate(points):
        before = min(half, index)
        around = points[index - before : index + before + 1]
        smoothed.append((x, sum(y for _, y in around) / len(around)))
    return smoothed


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values within [low, high], some `about` of them."""
    raw = (high - low) / about
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * 0.999)
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


class _Frame:
    """The plotting area: data to pixels."""

    def __init__(
        self,
        x_range: tuple[float, float],
        y_range: tuple[float, float],
        top: float,
        *,
        left: float = LEFT,
        right: float = 14,
        height: int = HEIGHT,
    ) -> None:
        self.x_range, self.y_range = x_range, y_range
        self.left, self.right, self.top, self.bottom = left, right, top, height - 44

    def x(self, value: float) -> float:
        low, high = self.x_range
        return round(self.left + (value - low) / (high - low) * (WIDTH - self.left - self.right), 1)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return round(self.bottom - (value - low) / (high - low) * (self.bottom - self.top), 1)

    def axes(self, labels: Labels, *, rows: bool = False) -> str:
        """Grid, tick labels, axis labels. With `rows`, y has no scale."""
        parts = []
        marks = ticks(*self.x_range)
        for value, text in zip(marks, _numbers(marks), strict=True):
            x = self.x(value)
            if rows:
                parts.append(f'<line x1="{x}" x2="{x}" y1="{self.top}" y2="{self.bottom}" stroke="var(--line)"/>')
            parts.append(f'<text x="{x}" y="{self.bottom + 16}" text-anchor="middle" {_SMALL}>{text}</text>')
        marks = [] if rows else ticks(*self.y_range)
        for value, text in zip(marks, _numbers(marks), strict=True):
            y = self.y(value)
            parts.append(f'<line x1="{self.left}" x2="{WIDTH - self.right}" y1="{y}" y2="{y}" stroke="var(--line)"/>')
            parts.append(f'<text x="{self.left - 6}" y="{y + 3.5:.1f}" text-anchor="end" {_SMALL}>{text}</text>')
        middle = (self.left + WIDTH - self.right) / 2
        parts.append(
            f'<text x="{middle:.1f}" y="{self.bottom + 35}" text-anchor="middle" {_SMALL}>{escape(labels.x)}</text>'
        )
        if labels.y:
            y = (self.top + self.bottom) / 2
            place = f'transform="translate(13 {y:.1f}) rotate(-90)" text-anchor="middle"'
            parts.append(f"<text {place} {_SMALL}>{escape(labels.y)}</text>")
        return "".join(parts)


_SMALL = 'fill="var(--muted)" font-size="11"'
_HALO = _SMALL + ' stroke="var(--surface)" stroke-width="4" paint-order="stroke" stroke-linejoin="round"'
_LEVEL = 'stroke="var(--text)" stroke-dasharray="2 3"'


def _svg(labels: Labels, height: int, description: str, body: Sequence[str]) -> str:
    name = escape(labels.name)
    size = min(TITLE, (WIDTH - 4) / (BOLD * len(labels.title)))  # a long title is written smaller, to its end
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-labelledby="{name}-title {name}-desc" font-family="system-ui, \'Segoe UI\', sans-serif" font-size="12" '
        f'fill="currentColor"><title id="{name}-title">{escape(labels.title)}</title>'
        f'<desc id="{name}-desc">{escape(description)}</desc>'
        f'<text x="2" y="15" font-size="{size:.1f}" font-weight="600">{escape(labels.title)}</text>{"".join(body)}</svg>'
    )


def _legend(series: Sequence[Series]) -> tuple[str, int]:
    """A sample of each line with its name, in as many lines as it takes, and where it ends."""
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


def _draw(item: Series, frame: _Frame) -> str:
    path = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in thin(item.points))
    style = (
        'stroke-opacity="0.28" stroke-width="1"' if item.faint else f'stroke-width="2" stroke-dasharray="{item.dash}"'
    )
    parts = [f'<polyline points="{path}" fill="none" stroke="var(--{item.color})" stroke-linejoin="round" {style}/>']
    for x, low, high in item.intervals:
        parts.append(_whisker(frame.x(x), frame.y(low), frame.x(x), frame.y(high), item.color))
    if item.intervals or len(item.points) == 1:
        dots = [(frame.x(x), frame.y(y)) for x, y in item.points]
        parts += [f'<circle cx="{x}" cy="{y}" r="4.5" fill="var(--{item.color})"/>' for x, y in dots]
    return "".join(parts)


def _whisker(x1: float, y1: float, x2: float, y2: float, color: str) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="var(--{color})" stroke-width="2" stroke-linecap="round"/>'


def _told(item: Series) -> str:
    (first_x, first), (last_x, last) = item.points[0], item.points[-1]
    return f"{first:.4g} at {first_x:g}, {last:.4g} at {last_x:g}"


def _numbers(values: Sequence[float]) -> list[str]:
    step = abs(values[1] - values[0]) if len(values) > 1 else 1.0
    decimals = next((count for count in range(8) if abs(round(step, count) - step) < step * 1e-6), 8)
    return [f"{value:,.{decimals}f}".replace("-", "\N{MINUS SIGN}") for value in values]


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [point for point in points if math.isfinite(point[0]) and math.isfinite(point[1])]


def _widen(values: Sequence[float], by: float) -> tuple[float, float]:
    low, high = min(values) - by, max(values) + by
    return (low, high) if high > low else (low - 0.5, high + 0.5)
