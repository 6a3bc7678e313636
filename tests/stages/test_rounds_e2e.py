"""Two rounds of CPO with real Ray Data and Ray Train: the first's policy is the second's start, sampler and scorer.

They have one GPU, which is counted only: scorer and trainer take it one after the other.
"""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cpo_ray.artifacts import find_artifact, read_jsonl, read_table
from cpo_ray.cluster.cards import Cards
from cpo_ray.config.loading import load_config
from cpo_ray.objective.logprobs import candidate_logps
from cpo_ray.objective.packing import pack_groups
from cpo_ray.objective.pretrained import load_model
from cpo_ray.pipeline import run_pipeline
from cpo_ray.planning.placement import place
from cpo_ray.run_directory import open_run
from cpo_ray.stages import perform
from cpo_ray.training.models import initialize_model

pytestmark = pytest.mark.e2e

STEPS = 4
OVERRIDES = (
    "rounds=2", f"training.steps={STEPS}", "training.validation_rows=8", "sampling.rows=48",
    "sampling.negatives={batch: 1, meanfield: 2, truncation: 1}", "cluster.gpus=1", "cluster.device=cpu",
)  # fmt: skip


# The second run takes as long again and shares no step with the first.
@pytest.fixture(scope="module", params=["adapter=null", pytest.param("adapter={rank: 4}", marks=pytest.mark.chaos)])
def config(request):
    """All weights, and an adapter that the second round goes on with."""
    given = load_config(Path(__file__).parents[1] / "tiny.yaml", (*OVERRIDES, request.param))
    return place(given, Cards(1)).config


@pytest.fixture(scope="module")
def root(config, tmp_path_factory):
    """A run up to stage `cpo`. Its reference is a model with random weights, so that the test has one training less."""
    root = tmp_path_factory.mktemp("rounds") / "run"
    with open_run(config, root, accept_changes=False) as run:
        perform("data", run)
        build = partial(initialize_model, config.model, root / "data" / "tokenizer", config.seed)
        run.make("models/reference", {}, build)
        for stage in ("sampling", "cpo"):
            perform(stage, run)
    return root


def columns(root, name, *names):
    return [read_table(root / "groups" / name)[column].to_pylist() for column in names]


def test_the_second_round_s_groups_are_new_draws_for_the_same_rows(root):
    (first, one), (second, two) = (columns(root, name, "id", "candidate_ids") for name in ("train", "train-2"))
    assert first == second
    assert len(first) == 48
    assert [group[0] for group in one] == [group[0] for group in two]
    assert sum(before[1:] != after[1:] for before, after in zip(one, two, strict=True)) > 24


def score(root, model, prompts, candidates):
    """(B, K) nats under a model of the run."""
    with torch.no_grad():
        return candidate_logps(load_model(root / "models" / model, "fp32"), pack_groups(prompts, candidates))


@pytest.mark.parametrize(("groups", "scored_by"), [("train", "reference"), ("train-2", "cpo-1")])
def test_the_groups_of_a_round_are_scored_by_the_policy_of_the_round_before(root, groups, scored_by):
    prompts, candidates, logps = columns(root, groups, "prompt_ids", "candidate_ids", "ref_logps")
    expected = score(root, scored_by, prompts[:8], candidates[:8])
    assert torch.allclose(torch.tensor(logps[:8], dtype=torch.float32), expected, atol=1e-3)
    model = find_artifact(root, f"models/{scored_by}")
    assert find_artifact(root, f"groups/{groups}").manifest.inputs["reads"][model.name] == model.fingerprint


def test_every_round_starts_at_log_k_factorial(root):
    rows = {(row["stage"], row["step"]): row for row in read_jsonl(root / "metrics.jsonl") if "loss" in row}
    for stage in ("cpo-1", "cpo-2"):
        assert [step for name, step in sorted(rows) if name == stage] == [1, 2, 3, 4]
        assert rows[stage, 1]["loss"] == pytest.approx(rows[stage, 1]["expected_loss"], abs=1e-3)
        assert rows[stage, 1]["gold_drift"] == pytest.approx(0, abs=1e-3)


def test_the_last_policy_is_the_result_and_the_figures_are_of_its_rounds(root):
    weights = [load_file(root / "models" / name / "model.safetensors") for name in ("cpo", "cpo-2", "cpo-1")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])
    summary = find_artifact(root, "models/cpo").manifest.summary
    assert (summary["kept"], summary["steps"], summary["stopped"]) == (2, 2 * STEPS, None)
    prompts, candidates = columns(root, "validation", "prompt_ids", "candidate_ids")
    golds = [group[:1] for group in candidates]
    tokens = sum(len(gold) for (gold,) in golds)
    nll = {name: -score(root, name, prompts, golds).sum().item() / tokens for name in ("reference", "cpo-1", "cpo-2")}
    assert [summary["reference_nll"], *(each["nll"] for each in summary["rounds"])] == pytest.approx(
        list(nll.values()), abs=1e-4
    )
    assert summary["rounds"][1]["nll_increase"] == pytest.approx(nll["cpo-2"] - nll["reference"], abs=1e-4)


def test_an_adapter_is_of_the_first_reference_in_every_round(root, config):
    folders = [root / "models" / name / "adapter" for name in ("cpo-1", "cpo-2", "cpo")]
    if config.adapter is None:
        assert not any(folder.exists() for folder in folders)
        return
    bases = {json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] for folder in folders}
    assert bases == {str(root / "models" / "reference")}
    one, two, kept = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    assert all(torch.equal(two[name], kept[name]) for name in two)
    first_matrices = [name for name in one if "lora_A" in name]  # drawn once, then trained a little
    assert all(torch.allclose(one[name], two[name], atol=0.05) for name in first_matrices)


def test_a_second_run_reuses_everything_and_the_report_shows_the_rounds(root, config, capsys):
    with open_run(config, root, accept_changes=False) as run:
        for stage in ("sampling", "cpo"):
            perform(stage, run)
    printed = capsys.readouterr().out
    assert "  made " not in printed
    for name in ("groups/train-2", "models/cpo-1", "models/cpo-2", "models/cpo"):
        assert f"reused {name}: same inputs" in printed
    run_pipeline(config, root, first="report", last="report", command="tiny.yaml")
    assert "Rounds of CPO" in (root / "report" / "index.html").read_text(encoding="utf-8")
    facts = json.loads((root / "report" / "report.json").read_text())["runs"][0]
    assert facts["training"]["cpo"]["steps"] == 2 * STEPS
    assert [each["kept"] for each in facts["rounds"]["rounds"]] == [True, True]
    assert not any("earlier" in item for item in facts["missing"])
