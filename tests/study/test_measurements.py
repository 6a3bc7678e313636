import json

import pytest

from cpo_ray.artifacts import write_rows
from cpo_ray.errors import ConfigError
from study.measurements import measure_picked, read_metric
from study.plan import Metric, Picked
from tests.study.fake_plan import NLL, REP

METRIC = Metric.model_validate(REP)


def write_scores(folder, model, rows, truth=0.1):
    place = folder / "text_metrics" / model
    place.mkdir(parents=True)
    mean = sum(rows) / len(rows)
    scores = {"greedy": {"rep_4": {"answers": {"value": mean}, "truth": {"value": truth}}}}
    (place / "scores.json").write_text(json.dumps(scores))
    write_rows(place / "greedy.jsonl", [{"id": str(number), "rep_4": value} for number, value in enumerate(rows)])


def test_a_metric_with_a_truth_is_the_distance_to_it(tmp_path):
    write_scores(tmp_path, "cpo", [0.0, 0.04], truth=0.1)
    assert read_metric(METRIC, tmp_path, "cpo") == pytest.approx(0.08)
    assert read_metric(METRIC, tmp_path, "mle") is None


def test_a_scale_is_applied_and_null_is_no_value(tmp_path):
    metric = Metric.model_validate(NLL)
    (tmp_path / "nll.json").write_text('{"cpo": -3.5}')
    assert read_metric(metric, tmp_path, "cpo") == 3.5
    (tmp_path / "nll.json").write_text('{"cpo": null}')
    assert read_metric(metric, tmp_path, "cpo") is None


@pytest.mark.parametrize("content", ['{"other": 1}', '{"gold": "much"}', "[]"])
def test_a_wrong_place_is_an_error(tmp_path, content):
    (tmp_path / "nll.json").write_text(content)
    with pytest.raises(ConfigError, match="gold"):
        read_metric(Metric.model_validate(NLL | {"value": ["gold"]}), tmp_path, "cpo")


def test_a_picked_model_is_measured_on_rows_that_it_was_not_picked_on(tmp_path):
    """`a` is best on the even rows (0 against .2), `b` on the odd ones (.3 against .8): so .8 of `a` and .2 of `b` count."""
    write_scores(tmp_path, "a", [0.0, 0.8, 0.0, 0.8], truth=0.0)
    write_scores(tmp_path, "b", [0.2, 0.3, 0.2, 0.3], truth=0.0)
    picked = Picked(models=("a", "b"), metric="rep")
    assert measure_picked(METRIC, picked, tmp_path) == pytest.approx((0.8 + 0.2) / 2)
    higher = METRIC.model_copy(update={"better": "higher"})
    assert measure_picked(higher, picked, tmp_path) == pytest.approx((0.3 + 0.0) / 2)


def test_a_row_without_a_value_is_left_out(tmp_path):
    write_scores(tmp_path, "a", [0.1, 0.2])
    write_rows(tmp_path / "text_metrics" / "a" / "greedy.jsonl", [{"rep_4": v} for v in (0.3, 0.5, None, 0.7)])
    picked = Picked(models=("a", "a"), metric="rep")
    assert measure_picked(METRIC, picked, tmp_path) == pytest.approx((0.2 + 0.5) / 2)
