"""Groups of rows from Python, and a run that Python continues."""

import json
import math

import pytest
import ray

import cpo_ray
from cpo_ray.config.loading import parse_config, read_tree
from tests.test_api import ROOT

pytestmark = pytest.mark.e2e


def test_rows_become_groups_and_the_run_continues(tmp_path):
    tree = read_tree(ROOT / "tests" / "tiny.yaml")
    tree["data"] |= {"train_rows": 24, "validation_rows": 4, "test_rows": 4}
    tree["reference"] |= {"steps": 2, "workers": 1, "prompts_per_step": 8}
    tree["sampling"] = {
        "rows": 16,
        "negatives": {"autoregressive": 0, "batch": 1, "meanfield": 1, "truncation": 1},
        "batch_rows": 8,
    }
    tree["training"] |= {"steps": 1, "workers": 1, "prompts_per_step": 8}
    config = parse_config(tree, "tiny")
    rows = [{"prompt": f"What is {n} and {n}?", "response": f"It is {2 * n}, of course."} for n in range(32)]
    groups = cpo_ray.make_groups(rows, tmp_path / "run", config)
    found = groups.take_all()
    assert len(found) == 16
    golds = {row["prompt"]: row["response"] for row in rows}
    for group in found:
        prompt = next(prompt for prompt in golds if prompt in group["prompt"])
        assert group["candidate_text"][0] == golds[prompt]
        assert list(group["candidate_kind"]) == ["gold", "batch", "meanfield", "truncation"]
    ray.shutdown()
    stored = parse_config(json.loads((tmp_path / "run" / "config.json").read_text()), "config.json")
    assert cpo_ray.run(stored, tmp_path / "run", first="cpo", last="cpo") == tmp_path / "run"
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert first["stage"] == "cpo"
    assert first["loss"] == pytest.approx(math.lgamma(5), abs=1e-3)  # log 4!: ranked, the first step
