import json

import pytest

from cpo_ray.artifacts import read_jsonl
from cpo_ray.monitoring.metrics_log import MetricsLog


def test_an_incomplete_line_is_removed_before_the_next(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": "cpo", "step": 1}\n{"stage": "cpo", "st')
    MetricsLog(path).append({"stage": "cpo", "step": 2})
    assert read_jsonl(path) == [{"stage": "cpo", "step": 1}, {"stage": "cpo", "step": 2}]


def test_dropping_a_stage_keeps_the_others(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for stage in ("reference", "cpo"):
        log.append({"stage": stage, "step": 1})
    log.drop_stage("cpo")
    assert read_jsonl(log.path) == [{"stage": "reference", "step": 1}]


def test_a_stage_has_the_lines_of_its_selected_training(tmp_path):
    """One configuration, then another, then the first again, which resumes from its checkpoints without a step."""
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"stage": "reference", "step": 1})
    first, other = tmp_path / "checkpoints" / "cpo-1", tmp_path / "checkpoints" / "cpo-2"
    for folder, loss in ((first, 5.0), (other, 1.0)):
        log.select_training("cpo", folder)
        folder.mkdir(parents=True)
        log.append({"stage": "cpo", "step": 1, "loss": loss})

    def losses():
        rows = read_jsonl(log.path)
        assert rows[0] == {"stage": "reference", "step": 1}
        return [(row["step"], row["loss"]) for row in rows[1:]]

    assert losses() == [(1, 1.0)]
    for _ in range(2):
        log.select_training("cpo", first)
        assert losses() == [(1, 5.0)]
    log.append({"stage": "cpo", "step": 2, "loss": 4.0})
    log.select_training("cpo", other)
    assert losses() == [(1, 1.0)]
    log = MetricsLog(log.path)
    log.select_training("cpo", first)
    assert losses() == [(1, 5.0), (2, 4.0)]


def test_nan_is_refused(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.append({"loss": float("nan")})
    assert [json.loads(line) for line in log.path.read_text().splitlines()] == []
