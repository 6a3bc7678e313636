import json
from xml.etree import ElementTree as ET

import pytest

from cpo_ray.artifacts import write_json
from cpo_ray.report.training_charts import KIND_STYLES, style_kinds
from cpo_ray.report.write import write_report
from tests.report.fake_run import make_fake_run

SVG = "{http://www.w3.org/2000/svg}"
OWN = {"echoes": 2, "aside": 1}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of a run with two custom kinds of negatives."""
    root = tmp_path_factory.mktemp("own") / "run"
    make_fake_run(root, rows=30, steps=20, decodings=("greedy",), sampling={"negatives": OWN})
    stats, metrics = root / "groups" / "train" / "stats.json", root / "metrics.jsonl"
    kinds = json.loads(stats.read_text())
    write_json(stats, kinds | {kind: {**kinds["batch"], "count": 3000 * count} for kind, count in OWN.items()})
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    for row in rows:
        if "negative_logp" in row:
            row["negative_logp"] |= dict.fromkeys(OWN, -33.0)
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_report([root], root / "report")
    return root / "report"


def read_lines(report, chart):
    """Return name -> (colour, dash) of its line in the legend."""
    root = ET.parse(report / "figures" / f"{chart}.svg").getroot()
    samples = [node for node in root.iter(f"{SVG}line") if node.get("stroke-width") == "2.2"]
    names = [node.text for node in root.iter(f"{SVG}text") if node.get("font-size") == "11.5"]
    looks = [(node.get("stroke"), node.get("stroke-dasharray")) for node in samples]
    return dict(zip(names, looks, strict=True))


def test_every_kind_has_its_own_line_in_every_chart_of_kinds(report):
    seen = {}
    for chart in ("cpo-logp", "sampling-length", "sampling-similarity"):
        lines = read_lines(report, chart)
        assert lines.keys() | {"gold"} == {"gold", "batch", "meanfield", "truncation", *OWN}, chart
        assert len(set(lines.values())) == len(lines), chart
        for kind, look in lines.items():
            assert seen.setdefault(kind, look) == look, (chart, kind)


def test_no_two_kinds_look_the_same():
    styles = style_kinds([f"own-{number}" for number in range(20)])
    assert len(set(styles.values())) == len(styles) == 20 + len(KIND_STYLES)


def test_the_page_shows_the_statistics_of_a_custom_kind(report):
    page = (report / "index.html").read_text(encoding="utf-8")
    for kind, count in OWN.items():
        assert f'<th scope="row">{kind}</th><td>{3000 * count:,}</td>' in page
