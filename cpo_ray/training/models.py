"""Models in and out: from scratch by a config, from a Hugging Face directory, and back into one."""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig, PreTrainedModel

from cpo_ray.config import ModelConfig
from cpo_ray.objective.loading import load_causal_lm

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def initialize_model(config: ModelConfig, tokenizer: Path, seed: int, out: Path) -> dict[str, Any]:
    """Write a model with random weights, and the tokenizer, as a Hugging Face directory."""
    words = AutoTokenizer.from_pretrained(tokenizer)
    special = {
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    if config.architecture == "llama":
        shape: Any = LlamaConfig(
            vocab_size=len(words),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            max_position_embeddings=config.context,
            tie_word_embeddings=config.tie_embeddings,
            **special,
        )
    else:
        shape = GPT2Config(
            vocab_size=len(words),
            n_embd=config.hidden_size,
            n_inner=config.intermediate_size,
            n_layer=config.layers,
            n_head=config.heads,
            n_positions=config.context,
            tie_word_embeddings=config.tie_embeddings,
            **special,
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(shape)
    model.save_pretrained(out)
    words.save_pretrained(out)
    return {"parameters": model.num_parameters(), "vocabulary": len(words)}


def load_model(source: str | Path, precision: str) -> PreTrainedModel:
    """Load a causal language model for training: safetensors only, no remote code, no dropout.

    Dropout is off because policy and reference must be the same function at the first step.
    """
    model = load_causal_lm(source, DTYPES[precision])
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and ("drop" in name or "jitter" in name):
                setattr(module, name, 0.0)
    return model


def train_mode(model: PreTrainedModel) -> None:
    """Training mode for what checkpoints activations, which it does in no other, and evaluation mode for all else.

    Some routers and layers draw at random in training mode, and the policy would not be the reference at the first step.
    """
    for module in model.modules():
        module.training = bool(getattr(module, "gradient_checkpointing", False))


def export_model(
    model: PreTrainedModel, weights: dict[str, torch.Tensor] | None, source: str | Path, out: Path
) -> None:
    """Write an ordinary Hugging Face directory: safetensors, config, and the tokenizer of `source`.

    weights: a gathered state dict where the module's own is partitioned (ZeRO-3); None for the module's own.
    """
    model.save_pretrained(out, state_dict=weights)
    AutoTokenizer.from_pretrained(source).save_pretrained(out)


def copy_model(source: Path, out: Path) -> None:
    """Copy a Hugging Face directory's files into an existing folder."""
    for file in source.iterdir():
        shutil.copy2(file, out / file.name)
