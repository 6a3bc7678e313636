"""What the sampling stage reads from the reference model's directory before any actor starts."""

from dataclasses import dataclass
from pathlib import Path

from cpo_ray.errors import ConfigError
from cpo_ray.records import Tokens
from cpo_ray.sampling.negatives.registry import Limits
from cpo_ray.sampling.responses import encode_responses, load_tokenizer


@dataclass(frozen=True)
class Reference:
    """The reference model's directory and the facts from its configuration and tokenizer."""

    path: Path
    context: int  # positions
    eos: int
    vocabulary: int  # rows of the embedding


def read_reference(path: Path) -> Reference:
    """Read the configuration and the tokenizer in `path`. Raises ConfigError for a tokenizer without EOS."""
    from transformers import AutoConfig, AutoTokenizer

    eos = AutoTokenizer.from_pretrained(path, trust_remote_code=False).eos_token_id
    if eos is None:
        raise ConfigError(f"the tokenizer in {path} has no EOS token")
    model = AutoConfig.from_pretrained(path, trust_remote_code=False)
    return Reference(path, model.max_position_embeddings, eos, model.vocab_size)


def candidate_limits(reference: Reference, max_tokens: int) -> Limits:
    """The limits of every candidate: at most `max_tokens`, EOS included."""

    def encode(text: str) -> Tokens:
        return encode_responses(load_tokenizer(reference.path), [text], max_tokens)[0]

    return Limits(max_tokens, reference.eos, reference.vocabulary, encode)
