"""Loading and exporting models: one function in training and in scoring, and an unchanged configuration on disk."""

import json
import shutil

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BioGptConfig,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    Starcoder2Config,
)

from cpo_ray.errors import TrainingError
from cpo_ray.inference.model_facts import read_model_facts
from cpo_ray.objective.pretrained import check_repeatable, load_model
from cpo_ray.training.models import export_model
from tests.sampling.tiny_reference import make_tokenizer

SMALL = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
POSITIONS = {"max_position_embeddings": 64}
CONFIGS = {
    "opt": OPTConfig(
        **SMALL, **POSITIONS, ffn_dim=64, word_embed_proj_dim=32, dropout=0.3, attention_dropout=0.3, layerdrop=0.3
    ),
    "biogpt": BioGptConfig(**SMALL, **POSITIONS, intermediate_size=64, hidden_dropout_prob=0.3, activation_dropout=0.3),
    "starcoder2": Starcoder2Config(
        **SMALL, **POSITIONS, intermediate_size=64, num_key_value_heads=2, residual_dropout=0.3, embedding_dropout=0.3,
        attention_dropout=0.3, bos_token_id=0, eos_token_id=0,
    ),
    "gpt2": GPT2Config(**SMALL, n_positions=64, bos_token_id=0, eos_token_id=0),  # three rates of 0.1
    "llama": LlamaConfig(**SMALL, **POSITIONS, intermediate_size=64, attention_dropout=0.3),
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Architecture -> a model directory with random weights."""
    root, found = tmp_path_factory.mktemp("architectures"), {}
    for name, config in CONFIGS.items():
        torch.manual_seed(3)
        AutoModelForCausalLM.from_config(config).save_pretrained(root / name)
        make_tokenizer().save_pretrained(root / name)
        found[name] = root / name
    return found


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(1, 9)[None], use_cache=False).logits


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_is_the_same_function_in_training_and_in_scoring(folders, name):
    model = load_model(folders[name], "fp32")
    scored = logits(model.eval())
    model.train()
    for _ in range(3):
        torch.testing.assert_close(logits(model), scored)


def rates(folder):
    stored = json.loads((folder / "config.json").read_text())
    return {key: value for key, value in stored.items() if "drop" in key}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_exported_configuration_keeps_the_model_s_dropout(folders, name, tmp_path):
    before = rates(folders[name])
    assert any(before.values())
    export_model(load_model(folders[name], "fp32"), None, folders[name], tmp_path)
    assert rates(tmp_path) == before


def test_a_model_that_stays_random_is_refused_with_its_module(folders, monkeypatch):
    model = load_model(folders["llama"], "fp32")
    layer = model.get_decoder().layers[1].mlp
    forward = layer.forward
    monkeypatch.setattr(
        layer, "forward", lambda x: torch.nn.functional.dropout(forward(x), 0.1, training=layer.training)
    )
    with pytest.raises(TrainingError, match=r"the model tiny .* module model\.layers\.1\.mlp \(LlamaMLP\)"):
        check_repeatable(model, "tiny")


@pytest.mark.parametrize("name", CONFIGS)
def test_dropout_in_training_is_asked_for_and_never_in_the_attention(folders, name):
    model = load_model(folders[name], "fp32", dropout="model")
    scored = logits(model.eval())
    model.train()
    torch.manual_seed(5)
    has_only_attention_dropout = name == "llama"
    assert torch.allclose(logits(model), scored, atol=1e-5) == has_only_attention_dropout
    assert all(
        not vars(model.config).get(key) for key in ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")
    )


def test_the_export_has_added_tokens_and_every_end_of_text(folders, tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<|user|>"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    source = shutil.copytree(folders["llama"], tmp_path / "source")
    GenerationConfig(eos_token_id=[0, 5]).save_pretrained(source)
    export_model(load_model(source, "fp32"), None, source, tmp_path / "out", tmp_path / "tokenizer")
    exported = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert exported.convert_tokens_to_ids("<|user|>") == len(tokenizer) - 1
    assert exported.pad_token is None
    assert read_model_facts(tmp_path / "out").stops == (0, 5)
