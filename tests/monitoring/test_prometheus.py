import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cpo_ray.monitoring import console, prometheus

ROOT = Path(__file__).parents[2]
LABELS = {"run": "x", "stage": "sampling", "unit": "rows"}


class FakeMeter:
    def __init__(self, name, description, tag_keys):
        self.values = []
        assert description
        assert tag_keys == prometheus.LABELS

    def record(self, value, tags):
        self.values.append((value, tags))

    def __getattr__(self, name):
        return {"set": self.record, "inc": self.record}[name]


@pytest.fixture
def measured(monkeypatch):
    """Name -> meter, as if Ray were running in this process."""
    made = {}

    def make(name):
        return made.setdefault(name, FakeMeter(name, prometheus.METERS[name], prometheus.LABELS))

    monkeypatch.setattr(prometheus, "_make_meter", make)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: True))
    monkeypatch.setattr(console, "PLAIN_INTERVAL_S", 1e9)
    return made


def test_a_bar_measures_its_rate_and_remaining_units(measured, capsys):
    with prometheus.metric_labels("x", "sampling"), prometheus.measured_bar("sampling", 10, "rows") as bar:
        bar.advance(4)
        bar.set_completed(3)  # repeated after a restart
        bar.set_completed(6)
    assert measured["cpo_ray_units_total"].values == [(4, LABELS), (2, LABELS)]
    assert [value for value, _ in measured["cpo_ray_left"].values] == [10, 6, 6, 4, 0]


def test_a_training_is_measured(measured):
    with prometheus.metric_labels("x", "cpo"):
        prometheus.measure_step({"step": 1, "loss": 2.5, "tokens_per_second": 100.0, "memory_gib": 3.0})
        prometheus.measure_step({"step": 1, "validation": {"loss": 2.25}})
    assert measured["cpo_ray_loss"].values == [(2.5, {"run": "x", "stage": "cpo", "unit": "nats"})]
    assert measured["cpo_ray_tokens_per_second"].values[0][0] == 100
    assert measured["cpo_ray_validation_loss"].values[0][0] == 2.25


def test_without_ray_nothing_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(prometheus, "_make_meter", lambda name: pytest.fail("there is no Ray"))
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    with prometheus.measured_bar("data", 1, "rows") as bar:
        bar.advance()
    prometheus.measure_step({"loss": 1.0})
    assert "ray" not in sys.modules  # and it is not imported for a metric
    assert "data: 1/1" in capsys.readouterr().out


def test_the_dashboard_shows_exactly_the_existing_meters():
    dashboard = json.loads((ROOT / "docs" / "grafana.json").read_text())
    shown = set()
    for panel in dashboard["panels"]:
        assert panel["title"]
        for target in panel["targets"]:
            shown |= set(re.findall(r"ray_(cpo_ray_\w+)", target["expr"]))
            assert 'run=~"$run"' in target["expr"] or "ray_node" in target["expr"]
    assert shown == set(prometheus.METERS)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
