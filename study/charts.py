"""Charts of the study: one row per arm, a dot with its interval over seeds, and the seeds as small dots."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from cpo_ray.report.svg import HALO, SMALL, WIDTH, Labels, PlotArea, standalone, svg_document, whisker
from study.estimates import Mean

ROW, TOP = 26, 34  # pixels
CHARACTER = 6.4


@dataclass(frozen=True)
class ChartRow:
    """One arm: the mean over seeds, and each seed's value."""

    name: str
    mean: Mean
    seeds: Sequence[float]


def difference_chart(labels: Labels, rows: Sequence[ChartRow]) -> str:
    """Draw differences around a line at zero, as a separate SVG file. Raises ValueError without rows."""
    if not rows:
        raise ValueError(f"{labels.name}: no rows to draw")
    ends = [0.0, *(value for row in rows for value in (*row.seeds, row.mean.low, row.mean.high) if value is not None)]
    padding = 0.06 * (max(ends) - min(ends) or 1.0)
    height = TOP + ROW * len(rows) + 46
    left = 16 + CHARACTER * max(len(row.name) for row in rows)
    area = PlotArea((min(ends) - padding, max(ends) + padding), (0, 1), TOP, left=left, height=height)
    zero = area.x(0.0)
    body = [area.axes(labels, rows=True)]
    body.append(
        f'<line x1="{zero}" x2="{zero}" y1="{TOP - 4}" y2="{height - 44}" stroke="var(--text)" stroke-dasharray="2 3"/>'
    )
    for number, row in enumerate(rows):
        body.append(_draw_row(row, TOP + ROW * (number + 0.5), area))
    description = "; ".join(f"{row.name}: {row.mean.value:+.3f}, {row.mean.n} seeds" for row in rows)
    return standalone(svg_document(labels, height, f"{description}. The line is at 0", body))


def _draw_row(row: ChartRow, y: float, area: PlotArea) -> str:
    x = area.x(row.mean.value)
    parts = [f'<text x="2" y="{y + 4:.1f}" {HALO}>{escape(row.name)}</text>']
    if row.mean.low is not None and row.mean.high is not None:
        parts.append(whisker(area.x(row.mean.low), y, area.x(row.mean.high), y, "blue"))
    parts += [f'<circle cx="{area.x(value)}" cy="{y - 6:.1f}" r="1.6" {SMALL}/>' for value in row.seeds]
    parts.append(f'<circle cx="{min(x, WIDTH - 4.0)}" cy="{y}" r="4.5" fill="var(--blue)"/>')
    return "".join(parts)
