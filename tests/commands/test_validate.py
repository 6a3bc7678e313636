import json

import pytest

from cpo_ray.cluster.cards import Cards
from cpo_ray.commands.placement import PLACED
from cpo_ray.data.tokenization import train_tokenizer
from cpo_ray.pipeline import STAGES
from tests.checks.test_model_fit import TEXTS, write_model
from tests.commands.command_line import invoke


def test_validate_prints_what_follows_from_the_configuration_and_all_of_it_if_asked(config, pipeline_calls):
    result = invoke("validate", config)
    assert result.exit_code == 0
    assert "beta: 5.0" not in result.stdout
    assert len(result.stdout.splitlines()) <= 14
    assert "beta: 5.0" in invoke("validate", config, "--show").stdout
    found = json.loads(invoke("validate", config, "--json").stdout)
    assert found["config"]["objective"]["beta"] == 5.0
    assert all(line in result.stdout for line in found["lines"])
    assert "K = 12: the truth and 11 negatives (3 batch, 5 meanfield, 3 truncation)" in result.stdout
    assert "tokens per CPO step: at most 49,152" in result.stdout  # 64 * (192 + 9 * 64)
    assert "2 workers x 2 microbatches of 16 prompts" in result.stdout
    assert pipeline_calls == []


def test_validate_and_run_print_who_gets_which_gpus(config, pipeline_calls, monkeypatch):
    def found(self):
        return Cards(1, 24.0, name="RTX 4090")

    assert "GPUs: none. On the CPU: 2 training workers" in " ".join(invoke("validate", config).output.split())
    monkeypatch.setattr("cpo_ray.commands.placement.find_cards", found)
    sampled = ["--set", "sampling.negatives.autoregressive=3"]
    for command in ("validate", "run"):
        result = invoke(command, config, *sampled)
        assert result.exit_code == 0, result.output
        seen = " ".join(result.output.split())
        assert "GPUs: 1 x RTX 4090, 24.0 GiB each" in seen
        assert "sampling, all at once: an engine has" in seen
        assert "generation: 1 engine for 5 models in turn" in seen
    (call,) = pipeline_calls
    assert (call["config"].training.workers, call["config"].cluster.gpus) == (1, 1)
    result = invoke("validate", config, "--set", "training.workers=4")
    assert result.exit_code == 2
    assert "training.workers 4 x 1 GPU each = 4 GPUs, and this machine has 1 GPU" in " ".join(result.output.split())
    assert invoke("run", config, "--set", "training.workers=4").exit_code == 2
    assert len(pipeline_calls) == 1


def test_a_stage_that_needs_no_gpu_looks_for_none(config, pipeline_calls, monkeypatch):
    monkeypatch.setattr("cpo_ray.commands.placement.find_cards", lambda _: pytest.fail("looked for GPUs"))
    assert STAGES.keys() > PLACED
    for stage in STAGES.keys() - PLACED - {"report"}:
        assert invoke(stage, config).exit_code == 0
    assert {call["first"] for call in pipeline_calls} == STAGES.keys() - PLACED - {"report"}


def test_validate_joins_no_cluster(config, monkeypatch):
    monkeypatch.setattr("cpo_ray.commands.placement.find_cards", lambda _: pytest.fail("joined"))
    result = invoke("validate", config, "--set", "cluster.address=head:6379")
    assert "GPUs: counted when the run joins the cluster at head:6379" in " ".join(result.output.split())
    result = invoke("validate", config, "--set", "cluster.address=head:6379", "--set", "cluster.gpus=16")
    assert "cpo, mle: 16 training workers, 1 GPU each, 4 prompts at a time" in " ".join(result.output.split())


def test_validate_compares_a_pretrained_model_with_its_tokenizer_and_the_lengths(config, tmp_path):
    model = write_model(tmp_path / "model", train_tokenizer(TEXTS, 280))
    assert invoke("validate", config, "--set", f"model.path={model}").exit_code == 0
    write_model(model, None, max_position_embeddings=128)
    result = invoke("validate", config, "--set", f"model.path={model}")
    assert result.exit_code == 2
    assert "= 256 exceeds the 128 positions of model.path" in " ".join(result.output.split())


def test_validate_says_which_model_it_cannot_compare(config):
    result = invoke("validate", config, "--set", "model.path=owner/model-that-is-not-here")
    assert result.exit_code == 0
    assert "model.path owner/model-that-is-not-here is not on this machine" in " ".join(result.output.split())


def test_validate_and_run_warn_of_a_recipe_that_can_change_little(config, pipeline_calls):
    sampled = ["--set", "sampling.negatives={autoregressive: 11, batch: 0, meanfield: 0, truncation: 0}"]
    for command in ("validate", "run", "sampling", "cpo"):
        seen = " ".join(invoke(command, config, *sampled).output.split())
        assert "warning negatives come from the reference and objective.beta is 5" in seen, command
        assert "warning negatives" not in invoke(command, config).output
    assert "warning negatives" not in invoke("judging", config, *sampled).output


def test_validate_names_an_architecture_that_transformers_lacks_and_what_to_install(config, tmp_path):
    settings = {"model_type": "llama9", "architectures": ["Llama9ForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    result = invoke("validate", config, "--set", f"model.path={tmp_path}")
    assert result.exit_code == 2
    printed = " ".join(result.output.split())
    assert "model.path: the model" in printed
    assert "is a `llama9` (Llama9ForCausalLM), which transformers" in printed
    assert "pip install --upgrade transformers" in printed


def test_validate_checks_the_targets_of_an_adapter(config):
    result = invoke("validate", config, "--set", "adapter={rank: 8}")
    assert result.exit_code == 0
    assert (
        "adapters: rank 8, alpha 32, in every linear layer of the blocks; the reference starts from random"
        in result.stdout
    )
    result = invoke("validate", config, "--set", "adapter={targets: [qproj]}")
    assert result.exit_code == 2
    assert "adapter.targets: qproj does not exist" in " ".join(result.output.split())
