"""Two rounds of CPO with real Ray Data and Ray Train: the first's policy is the second's start, sampler and scorer."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cpo_ray.artifacts import find_artifact, read_jsonl, read_table
from cpo_ray.config.loading import load_config
from cpo_ray.objective.logprobs import candidate_logps
from cpo_ray.objective.packing import pack_groups
from cpo_ray.objective.pretrained import load_model
from cpo_ray.pipeline import run_pipeline

pytestmark = pytest.mark.e2e

CONFIG = Path(__file__).parents[1] / "tiny.yaml"
STEPS = 4
OVERRIDES = (
    "rounds=2", "rounds_stop.max_nll_increase=5", f"training.steps={STEPS}", "training.validation_rows=8",
    "training.learning_rate=1.0e-3", "training.workers=1", "reference.workers=1", "reference.steps=6",
    "sampling.negatives={batch: 1, meanfield: 2, truncation: 1}", "sampling.rows=48",
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A run up to stage `mle`, and its report."""
    root = tmp_path_factory.mktemp("rounds") / "run"
    run_pipeline(load_config(CONFIG, OVERRIDES), root, last="mle", command="tiny.yaml")
    return root


def columns(root, name, *names):
    return [read_table(root / "groups" / name)[column].to_pylist() for column in names]


def test_the_second_round_s_groups_are_new_draws_for_the_same_rows(root):
    for split, rows in (("train", 48), ("validation", 8)):
        (first, golds, one), (second, same_golds, two) = (
            columns(root, name, "id", "candidate_ids", "candidate_ids") for name in (split, f"{split}-2")
        )
        assert first == second
        assert len(first) == rows
        assert [group[0] for group in golds] == [group[0] for group in same_golds]
        assert sum(before[1:] != after[1:] for before, after in zip(one, two, strict=True)) > rows / 2


@pytest.mark.parametrize(
    ("groups", "scored_by"), [("train", "reference"), ("train-2", "cpo-1"), ("validation-2", "cpo-1")]
)
def test_the_groups_of_a_round_are_scored_by_the_policy_of_the_round_before(root, groups, scored_by):
    prompts, candidates, logps = columns(root, groups, "prompt_ids", "candidate_ids", "ref_logps")
    with torch.no_grad():
        model = load_model(root / "models" / scored_by, "fp32")
        expected = candidate_logps(model, pack_groups(prompts[:8], candidates[:8]))
    assert torch.allclose(torch.tensor(logps[:8], dtype=torch.float32), expected, atol=1e-3)
    model = find_artifact(root, f"models/{scored_by}")
    assert find_artifact(root, f"groups/{groups}").manifest.inputs["reads"][model.name] == model.fingerprint


def test_every_round_starts_at_log_k_factorial_and_the_next_batches_follow(root):
    rows = {(row["stage"], row["step"]): row for row in read_jsonl(root / "metrics.jsonl") if "loss" in row}
    for stage in ("cpo-1", "cpo-2"):
        assert [step for name, step in sorted(rows) if name == stage] == [1, 2, 3, 4]
        assert rows[stage, 1]["loss"] == pytest.approx(rows[stage, 1]["expected_loss"], abs=1e-3)
        assert rows[stage, 1]["gold_drift"] == pytest.approx(0, abs=1e-3)
    assert [step for name, step in sorted(rows) if name == "mle"] == [*range(1, 2 * STEPS + 1)]
    # The gold's log-prob at the first step is that of the same prompts in both: mle's steps 1 and 5 took them too.
    assert rows["cpo-1", 1]["gold_logp"] == pytest.approx(rows["mle", 1]["gold_logp"], abs=1e-3)


def test_the_last_policy_is_the_result_and_the_figures_are_of_its_rounds(root):
    weights = [load_file(root / "models" / name / "model.safetensors") for name in ("cpo", "cpo-2", "cpo-1")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])
    summary = find_artifact(root, "models/cpo").manifest.summary
    assert (summary["kept"], summary["steps"], summary["stopped"]) == (2, 2 * STEPS, None)
    golds, logps = columns(root, "validation-2", "candidate_ids", "ref_logps")
    tokens = sum(len(group[0]) for group in golds)
    # The second round's reference is the first's policy: what scored its groups is what the first round measured.
    assert summary["rounds"][0]["nll"] == pytest.approx(-sum(group[0] for group in logps) / tokens, abs=1e-4)
    assert summary["rounds"][0]["nll_increase"] == pytest.approx(summary["rounds"][0]["nll"] - summary["reference_nll"])


def test_a_second_run_reuses_everything_and_the_report_shows_the_rounds(root, capsys):
    config = load_config(CONFIG, OVERRIDES)
    run_pipeline(config, root, last="mle", command="tiny.yaml")
    printed = capsys.readouterr().out
    assert "made" not in printed.replace("same inputs, made", "")
    for name in ("groups/train-2", "groups/validation-2", "models/cpo-1", "models/cpo-2", "models/cpo", "models/mle"):
        assert f"reused {name}: same inputs" in printed
    run_pipeline(config, root, first="report", last="report", command="tiny.yaml")
    page = (root / "report" / "index.html").read_text(encoding="utf-8")
    assert "Rounds of CPO" in page
    facts = json.loads((root / "report" / "report.json").read_text())["runs"][0]
    assert facts["comparison"]["alike"] is True
    assert "for 8 steps of 16 prompts (CPO in 2 rounds" in facts["comparison"]["sentence"]
    assert facts["training"]["cpo"]["steps"] == 2 * STEPS
    assert not any("earlier" in item for item in facts["missing"])
