import json

import pytest

from cpo_ray.artifacts import read_jsonl
from cpo_ray.metrics import MetricsLog


def test_a_torn_line_is_mended_before_the_next(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": "cpo", "step": 1}\n{"stage": "cpo", "st')
    MetricsLog(path).append({"stage": "cpo", "step": 2})
    assert read_jsonl(path) == [{"stage": "cpo", "step": 1}, {"stage": "cpo", "step": 2}]


def test_forgetting_a_stage_keeps_the_others(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for stage in ("reference", "cpo"):
        log.append({"stage": stage, "step": 1})
    log.forget("cpo")
    assert read_jsonl(log.path) == [{"stage": "reference", "step": 1}]


def test_nan_is_refused(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.append({"loss": float("nan")})
    assert [json.loads(line) for line in log.path.read_text().splitlines()] == []
