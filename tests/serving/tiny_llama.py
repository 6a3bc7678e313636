"""A tiny Llama with a byte-level BPE tokenizer, in the shape that the demo trains."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END = "<|endoftext|>"


def write_tiny_llama(folder: Path, seed: int, tie_embeddings: bool = True, shard_size: str = "5GB") -> Path:
    """Write a Hugging Face directory with random weights; the tokenizer does not depend on the seed."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1024, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator((f"sort {n} and {n * 7}, then reverse them" for n in range(2000)), trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END).save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=160,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=256,
        tie_word_embeddings=tie_embeddings,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        initializer_range=0.1,  # large, so that greedy decoding of a random model does not depend on rounding
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size=shard_size)
    return folder
