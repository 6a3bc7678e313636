from xml.etree import ElementTree as ET

import pytest

from cpo_ray.report.figures import Level, Series, line_chart
from cpo_ray.report.svg import PALETTES, Labels, standalone, ticks

LABELS = Labels("loss", "Loss <of> & all", "step", "loss (nats)")


def test_standalone_resolves_every_color():
    svg = standalone(line_chart(LABELS, [Series("a", [(1, 3.0), (2, 1.5)], "blue")], Level("x", 2)))
    ET.fromstring(svg)
    assert "var(" not in svg
    assert "currentColor" not in svg
    assert PALETTES["light"]["blue"] in svg


def test_palettes_name_the_same_colors_and_are_readable():
    assert PALETTES["light"].keys() == PALETTES["dark"].keys()
    for palette in PALETTES.values():
        for name in ("text", "muted", "accent", "blue", "orange", "green", "pink", "amber", "grey"):
            for ground in ("surface", "page"):
                assert _contrast(palette[name], palette[ground]) >= 4.5, (name, ground)


def _contrast(first, second):
    """WCAG 2's contrast ratio."""

    def luminance(color):
        channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
        return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0.33, 0.52, [0.35, 0.4, 0.45, 0.5]), (-50, -3, [-50, -40, -30, -20, -10])],
)
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)
