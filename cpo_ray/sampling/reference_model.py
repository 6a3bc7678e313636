"""What the sampling stage must know of the reference model before any actor starts."""

from dataclasses import dataclass
from pathlib import Path

from cpo_ray.config import RunConfig
from cpo_ray.errors import ConfigError
from cpo_ray.sampling.negatives.context import Tokens
from cpo_ray.sampling.negatives.registry import Limits
from cpo_ray.sampling.responses import encode_responses, load_tokenizer


@dataclass(frozen=True)
class Reference:
    """The reference model's directory, and what its files say."""

    path: Path
    context: int  # positions
    eos: int
    vocabulary: int  # tokens that it has an embedding for


def read_reference(path: Path) -> Reference:
    """Read its configuration and its tokenizer's. Raises ConfigError for a tokenizer without EOS."""
    from transformers import AutoConfig, AutoTokenizer

    eos = AutoTokenizer.from_pretrained(path, trust_remote_code=False).eos_token_id
    if eos is None:
        raise ConfigError(f"the tokenizer in {path} has no EOS token")
    model = AutoConfig.from_pretrained(path, trust_remote_code=False)
    return Reference(path, model.max_position_embeddings, eos, model.vocab_size)


def draw_limits(config: RunConfig, reference: Reference) -> Limits:
    """What a candidate must keep to, whoever draws it."""
    longest = config.data.max_response_tokens

    def encode(text: str) -> Tokens:
        return encode_responses(load_tokenizer(reference.path), [text], longest)[0]

    return Limits(longest, reference.eos, reference.vocabulary, encode)
