"""Text as a response: tokenized as the data stage does it, cut, ended with EOS."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

Tokenizer = Any  # transformers.PreTrainedTokenizerFast, which has no types to import
Tokens = list[int]


@cache
def load_tokenizer(reference: Path) -> Tokenizer:
    """The tokenizer in a Hugging Face directory, loaded once a process."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(reference, trust_remote_code=False)


def encode_responses(tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int) -> list[Tokens]:
    """The first `max_tokens` - 1 tokens of each text, and EOS. A text that spells out a special token stays text."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return [[*ids[: max_tokens - 1], tokenizer.eos_token_id] for ids in encoded]


def count_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """Tokens of each text, whole."""
    encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return list(map(len, encoded))
