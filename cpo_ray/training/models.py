"""Initialize, export and copy models as Hugging Face directories."""

import copy
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from cpo_ray.config import ModelConfig
from cpo_ray.objective.pretrained import original_dropout


def initialize_model(config: ModelConfig, tokenizer: Path, seed: int, out: Path) -> dict[str, Any]:
    """Write a model with random weights, and the tokenizer, as a Hugging Face directory."""
    hf_tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    special = {
        "bos_token_id": hf_tokenizer.bos_token_id,
        "eos_token_id": hf_tokenizer.eos_token_id,
        "pad_token_id": hf_tokenizer.pad_token_id,
    }
    shape = configured_shape(config, len(hf_tokenizer), special)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(shape)
    model.save_pretrained(out)
    hf_tokenizer.save_pretrained(out)
    return {"parameters": model.num_parameters(), "vocabulary": len(hf_tokenizer)}


def configured_shape(config: ModelConfig, vocabulary: int, special: dict[str, Any] | None = None) -> PreTrainedConfig:
    """The transformers configuration of a model from scratch. special: ids of the tokenizer's special tokens."""
    if config.architecture == "llama":
        return LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            max_position_embeddings=config.context,
            tie_word_embeddings=config.tie_embeddings,
            **(special or {}),
        )
    return GPT2Config(
        vocab_size=vocabulary,
        n_embd=config.hidden_size,
        n_inner=config.intermediate_size,
        n_layer=config.layers,
        n_head=config.heads,
        n_positions=config.context,
        tie_word_embeddings=config.tie_embeddings,
        **(special or {}),
    )


def export_model(
    model: PreTrainedModel,
    weights: dict[str, torch.Tensor] | None,
    source: str | Path,
    out: Path,
    tokenizer: str | Path | None = None,
) -> None:
    """Write an ordinary Hugging Face directory: safetensors, config with the dropout rates of `source`, and the tokenizer.

    weights: the gathered state dict if the module's own is partitioned (ZeRO-3); None for the module's own. tokenizer: a
    directory; by default, the tokenizer of `source`.
    """
    with original_dropout(model.config, source):
        model.save_pretrained(out, state_dict=weights)
    AutoTokenizer.from_pretrained(tokenizer or source, trust_remote_code=False).save_pretrained(out)


def export_without_weights(
    model: PreTrainedModel, source: str | Path, out: Path, tokenizer: str | Path | None = None
) -> None:
    """Write what `export_model` writes but the weights."""
    config = copy.deepcopy(model.config)
    config.architectures, config.dtype = [type(model).__name__], model.dtype
    with original_dropout(config, source):
        config.save_pretrained(out)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(out)
    AutoTokenizer.from_pretrained(tokenizer or source, trust_remote_code=False).save_pretrained(out)


def copy_model(source: Path, out: Path) -> None:
    """Copy a Hugging Face directory's files, with those of an adapter in it, into an existing folder."""
    shutil.copytree(source, out, dirs_exist_ok=True)
