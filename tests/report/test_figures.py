import math
from xml.etree import ElementTree as ET

import pytest

from cpo_ray.report.figures import (
    IntervalRow,
    Level,
    Series,
    interval_chart,
    line_chart,
    running_mean,
    thin,
)
from cpo_ray.report.svg import Labels

SVG = "{http://www.w3.org/2000/svg}"
LABELS = Labels("loss", "Loss <of> & all", "step", "loss (nats)")


def test_line_chart_is_xml_with_title_description_and_axis_labels():
    svg = line_chart(LABELS, [Series("a < b", [(1, 3.0), (2, 1.5)], "blue")], Level("log 12!", 19.9872))
    root = ET.fromstring(svg)
    assert root.get("role") == "img"
    assert root.find(f"{SVG}title").text == "Loss <of> & all"
    assert root.find(f"{SVG}desc").text == "a < b: 3 at 1, 1.5 at 2; log 12!"
    assert root.get("aria-labelledby") == "loss-title loss-desc"
    texts = [node.text for node in root.iter(f"{SVG}text")]
    assert {"step", "loss (nats)", "a < b", "log 12!"} <= set(texts)


def test_numbers_that_are_not_finite_are_left_out():
    points = [(1, 2.0), (2, math.nan), (3, math.inf), (4, 1.0)]
    svg = line_chart(LABELS, [Series("a", points, "blue")])
    assert "nan" not in svg
    assert "inf" not in svg
    with pytest.raises(ValueError, match="no points"):
        line_chart(LABELS, [Series("a", [(1, math.nan)], "blue")])


@pytest.mark.parametrize("points", [[(1, 5.0)], [(1, 0.0), (2, 0.0)], [(1, -1e-9), (2, 1e9)]])
def test_flat_single_and_huge_curves_are_drawn(points):
    svg = line_chart(LABELS, [Series("a", points, "blue")])
    assert ET.fromstring(svg).tag == f"{SVG}svg"
    assert "nan" not in svg.lower()


def test_long_tick_labels_do_not_overlap_the_axis_label():
    def first_tick(points):
        root = ET.fromstring(line_chart(LABELS, [Series("a", points, "blue")]))
        ends = [node for node in root.iter(f"{SVG}text") if node.get("text-anchor") == "end"]
        return float(ends[0].get("x")), ends[0].text

    for points in ([(0, 0.1), (1, 0.9)], [(0, 0.0041), (1, 0.0046)], [(0, 100_000_000), (1, 900_000_000)]):
        right, text = first_tick(points)
        assert right - 6.1 * len(text) >= 20, "the label is centred at 13"


def test_rows_are_drawn_below_the_name_of_their_group():
    intervals = [
        IntervalRow("mle", 0.4, 0.3, 0.5, "orange", "greedy"),
        IntervalRow("mle", 0.5, 0.4, 0.6, "orange", "top_p"),
    ]
    root = ET.fromstring(interval_chart(LABELS, intervals, Level("even", 0.5)))
    texts = [node.text for node in root.iter(f"{SVG}text")]
    assert [text for text in texts if text in {"greedy", "top_p", "mle"}] == ["greedy", "mle", "top_p", "mle"]
    assert "greedy, mle 0.400" in root.find(f"{SVG}desc").text


def test_a_long_name_is_truncated_but_complete_in_the_description():
    name = "a-model-with-a-name-far-too-long-for-a-chart"
    root = ET.fromstring(interval_chart(LABELS, [IntervalRow(name, 0.4, 0.3, 0.5, "blue")], Level("even", 0.5)))
    assert any(node.text.endswith("\N{HORIZONTAL ELLIPSIS}") for node in root.iter(f"{SVG}text"))
    assert name in root.find(f"{SVG}desc").text


@pytest.mark.parametrize("words", [1, 9, 16])
def test_a_long_title_gets_a_smaller_font(words):
    title = "beams " * words
    root = ET.fromstring(line_chart(Labels("x", title, "step"), [Series("a", [(1, 3.0)], "blue")]))
    (size,) = (float(node.get("font-size")) for node in root.iter(f"{SVG}text") if node.text == title)
    assert 0.6 * size * len(title) <= 400
    assert (size == 13.5) == (words == 1)


def test_interval_chart_places_dot_between_its_whiskers():
    intervals = [IntervalRow("mle", 0.41, 0.37, 0.45, "orange"), IntervalRow("cpo", 0.47, 0.43, 0.51, "blue")]
    root = ET.fromstring(interval_chart(LABELS, intervals, Level("even", 0.5)))
    dots = [float(node.get("cx")) for node in root.iter(f"{SVG}circle")]
    whiskers = [node for node in root.iter(f"{SVG}line") if node.get("stroke-linecap") == "round"]
    for dot, whisker in zip(dots, whiskers, strict=True):
        assert float(whisker.get("x1")) < dot < float(whisker.get("x2"))
    assert dots[0] < dots[1]
    assert "cpo 0.470, from 0.430 to 0.510" in root.find(f"{SVG}desc").text


def test_thinning_keeps_ends_and_spikes():
    points = [(float(x), 0.0) for x in range(100_000)]
    points[31_337] = (31_337.0, 9.0)
    points[77_777] = (77_777.0, -9.0)
    thinned = thin(points)
    assert len(thinned) <= 400
    assert thinned[0] == points[0]
    assert thinned[-1] == points[-1]
    assert points[31_337] in thinned
    assert points[77_777] in thinned
    assert [x for x, _ in thinned] == sorted(x for x, _ in thinned)
    assert thin(points[:400]) == points[:400]


def test_running_mean_by_hand():
    points = [(1, 10.0), (2, 4.0), (3, 1.0), (4, 4.0)]
    assert running_mean(points, 3) == [(1, 10.0), (2, 5.0), (3, 3.0), (4, 2.5)]
    assert running_mean(points, 1) == points
