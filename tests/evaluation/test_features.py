from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from cpo_ray.config import MauveConfig
from cpo_ray.errors import ConfigError
from cpo_ray.evaluation import features
from cpo_ray.evaluation.features import last_token_states, load_featurizer
from tests.serving.tiny_llama import write_tiny_llama

TEXTS = ["sort 3 and 1", "", "reverse them", "sort " * 100, "7"]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 with a window of 32 tokens and no padding token."""
    folder = write_tiny_llama(tmp_path_factory.mktemp("model") / "gpt2", seed=1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=1024, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("batch_tokens", [1, 40, 8192])
def test_last_token_features_are_the_hidden_states_at_the_last_token(
    gpt2: Path, batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "BATCH_TOKENS", batch_tokens)
    found = load_featurizer(MauveConfig(embedder=str(gpt2), features="last_token"))(TEXTS)
    assert found.shape == (5, 16)
    assert found.dtype == np.float32
    model, tokenizer = AutoModel.from_pretrained(gpt2).eval(), AutoTokenizer.from_pretrained(gpt2)
    for text, row in zip(TEXTS, found, strict=True):
        ids = tokenizer(text or "<|endoftext|>", return_tensors="pt").input_ids[:, :32]
        with torch.no_grad():
            assert row == pytest.approx(model(ids).last_hidden_state[0, -1].numpy(), abs=1e-5)


def test_an_empty_text_needs_an_end_of_text_token(gpt2: Path) -> None:
    model, tokenizer = AutoModel.from_pretrained(gpt2).eval(), AutoTokenizer.from_pretrained(gpt2)
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="no end-of-text token"):
        last_token_states(model, tokenizer, TEXTS)
    assert last_token_states(model, tokenizer, ["sort"]).shape == (1, 16)


def test_a_missing_language_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mauve.embedder .*nowhere: neither"):
        load_featurizer(MauveConfig(embedder=str(tmp_path / "nowhere"), features="last_token"))
    with pytest.raises(ValueError, match="needs a language model"):
        MauveConfig(features="last_token")


def test_sentence_embeddings_are_the_default() -> None:
    found = load_featurizer(MauveConfig())(["", "a sentence"])
    assert found.shape == (2, 384)
    assert np.linalg.norm(found, axis=1) == pytest.approx([1, 1], abs=1e-5)
