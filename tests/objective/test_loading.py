import json

import pytest
import torch

from cpo_ray.errors import TrainingError
from cpo_ray.objective.loading import load_causal_lm
from tests.objective.tiny_models import tiny_architecture


@pytest.mark.parametrize("name", ["gptj", "gpt_oss", "mamba", "bloom", "llama"])
def test_models_load_with_whatever_attention_they_have(name, tmp_path):
    tiny_architecture(name).save_pretrained(tmp_path)
    assert load_causal_lm(tmp_path, torch.bfloat16).dtype == torch.bfloat16


def write_config(folder, **config):
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_an_unknown_architecture_is_named_with_what_to_install(tmp_path):
    folder = write_config(tmp_path, model_type="llama9", architectures=["Llama9ForCausalLM"])
    with pytest.raises(TrainingError, match=r"`llama9` \(Llama9ForCausalLM\).*pip install --upgrade transformers"):
        load_causal_lm(folder, torch.float32)


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    folder = write_config(tmp_path, model_type="mine", auto_map={"AutoModelForCausalLM": "mine.Mine"})
    with pytest.raises(TrainingError, match="it comes with code of its own, which is not run"):
        load_causal_lm(folder, torch.float32)


def test_what_is_no_causal_language_model_is_named(tmp_path):
    with pytest.raises(TrainingError, match=r"is a `t5`, which transformers .* has as no causal language model"):
        load_causal_lm(write_config(tmp_path, model_type="t5"), torch.float32)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(TrainingError, match="cannot load the model"):
        load_causal_lm(tmp_path, torch.float32)
