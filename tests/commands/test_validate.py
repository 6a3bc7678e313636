import json

from cpo_ray.data.tokenization import train_tokenizer
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
