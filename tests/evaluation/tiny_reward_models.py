"""A tiny BERT reward model and its tokenizer, with one token per letter."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from cpo_ray.config import RewardConfig
from cpo_ray.evaluation.pairs import Pair
from cpo_ray.evaluation.reward import RewardModel, load_reward_model

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz"]
SMALL = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_labels": 1,
}


def write_tokenizer(folder: Path, **options: Any) -> PreTrainedTokenizerFast:
    """One letter is one token; pairs as BERT has them."""
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **options)
    fast.save_pretrained(folder)
    return fast


def write_bert(folder: Path) -> Path:
    torch.manual_seed(1)
    model = BertForSequenceClassification(BertConfig(**SMALL, max_position_embeddings=24, initializer_range=0.5))
    model.save_pretrained(folder)
    write_tokenizer(folder, pad_token="[PAD]")
    return folder


def load(folder: Path, **config: Any) -> RewardModel:
    return load_reward_model(RewardConfig(model=str(folder), **config), "cpu")


def pair(key: str, response: str, reference: str) -> Pair:
    return Pair(id=key, prompt="p", response=response, reference=reference)
