"""Text as a response: tokenized as in the data stage, then ended with EOS or cut."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from cpo_ray.records import Tokens, end_response

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@cache
def load_tokenizer(reference: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer in a Hugging Face directory, loaded once per process."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(reference, trust_remote_code=False)


def encode_responses(tokenizer: "PreTrainedTokenizerFast", texts: Sequence[str], max_tokens: int) -> list[Tokens]:
    """The tokens of each text as a response of at most `max_tokens`: with EOS, or cut and without (`end_response`).

    A special token spelled out in a text stays text.
    """
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return [end_response(ids, tokenizer.eos_token_id, max_tokens) for ids in encoded]


def count_tokens(tokenizer: "PreTrainedTokenizerFast", texts: Sequence[str]) -> list[int]:
    """Number of tokens of each whole text."""
    encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return list(map(len, encoded))
