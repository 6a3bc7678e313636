"""SVG primitives of the report's charts: colours, the plot area with its axes, ticks, and the document around them.

Colours are CSS variables, so that the page's theme applies; `standalone` replaces them by the light theme's, for a separate
file.
"""

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

WIDTH, HEIGHT = 400, 270  # pixels
LEFT = 58  # pixels left of the plot area, more if the tick labels are long
TITLE, BOLD = 13.5, 0.6  # a title's font size, and the width of a bold character in font sizes

SMALL = 'fill="var(--muted)" font-size="11"'
HALO = SMALL + ' stroke="var(--surface)" stroke-width="4" paint-order="stroke" stroke-linejoin="round"'


@dataclass(frozen=True)
class Labels:
    """The texts around a chart; `name` is its file name and the prefix of its element ids."""

    name: str
    title: str
    x: str
    y: str = ""


class PlotArea:
    """The plot area: maps data coordinates to pixels."""

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
        """Return the pixel of an x value."""
        low, high = self.x_range
        return round(self.left + (value - low) / (high - low) * (WIDTH - self.left - self.right), 1)

    def y(self, value: float) -> float:
        """Return the pixel of a y value."""
        low, high = self.y_range
        return round(self.bottom - (value - low) / (high - low) * (self.bottom - self.top), 1)

    def axes(self, labels: Labels, *, rows: bool = False) -> str:
        """Draw the grid, tick labels and axis labels. With `rows`, y has no scale."""
        parts = []
        marks = ticks(*self.x_range)
        for value, text in zip(marks, format_ticks(marks), strict=True):
            x = self.x(value)
            if rows:
                parts.append(f'<line x1="{x}" x2="{x}" y1="{self.top}" y2="{self.bottom}" stroke="var(--line)"/>')
            parts.append(f'<text x="{x}" y="{self.bottom + 16}" text-anchor="middle" {SMALL}>{text}</text>')
        marks = [] if rows else ticks(*self.y_range)
        for value, text in zip(marks, format_ticks(marks), strict=True):
            y = self.y(value)
            parts.append(f'<line x1="{self.left}" x2="{WIDTH - self.right}" y1="{y}" y2="{y}" stroke="var(--line)"/>')
            parts.append(f'<text x="{self.left - 6}" y="{y + 3.5:.1f}" text-anchor="end" {SMALL}>{text}</text>')
        middle = (self.left + WIDTH - self.right) / 2
        parts.append(
            f'<text x="{middle:.1f}" y="{self.bottom + 35}" text-anchor="middle" {SMALL}>{escape(labels.x)}</text>'
        )
        if labels.y:
            y = (self.top + self.bottom) / 2
            place = f'transform="translate(13 {y:.1f}) rotate(-90)" text-anchor="middle"'
            parts.append(f"<text {place} {SMALL}>{escape(labels.y)}</text>")
        return "".join(parts)


def svg_document(labels: Labels, height: int, description: str, body: Sequence[str]) -> str:
    """Wrap the elements of a chart in an SVG document with a title and a description for screen readers."""
    name = escape(labels.name)
    size = min(TITLE, (WIDTH - 4) / (BOLD * len(labels.title)))  # a long title gets a smaller font
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-labelledby="{name}-title {name}-desc" font-family="system-ui, \'Segoe UI\', sans-serif" font-size="12" '
        f'fill="currentColor"><title id="{name}-title">{escape(labels.title)}</title>'
        f'<desc id="{name}-desc">{escape(description)}</desc>'
        f'<text x="2" y="15" font-size="{size:.1f}" font-weight="600">{escape(labels.title)}</text>{"".join(body)}</svg>'
    )


def standalone(svg: str) -> str:
    """Convert a chart to a separate file: the light theme's colours, on a background."""
    palette = PALETTES["light"]
    colored = re.sub(r"var\(--([a-z]+)\)", lambda match: palette[match[1]], svg)
    colored = colored.replace("currentColor", palette["text"])
    head, rest = colored.split(">", 1)
    return f'{head}><rect width="100%" height="100%" fill="{palette["surface"]}"/>{rest}\n'


def whisker(x1: float, y1: float, x2: float, y2: float, color: str) -> str:
    """Draw the line of an interval."""
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="var(--{color})" stroke-width="2" stroke-linecap="round"/>'


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round values within [low, high], approximately `about` of them."""
    raw = (high - low) / about
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * 0.999)
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def format_ticks(values: Sequence[float]) -> list[str]:
    """Format tick values with as many decimals as their step needs."""
    step = abs(values[1] - values[0]) if len(values) > 1 else 1.0
    decimals = next((count for count in range(8) if abs(round(step, count) - step) < step * 1e-6), 8)
    return [f"{value:,.{decimals}f}".replace("-", "\N{MINUS SIGN}") for value in values]
