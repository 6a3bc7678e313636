"""What the sampling stage reads from the reference model's directory before any actor starts."""

from dataclasses import dataclass
from pathlib import Path

from cpo_ray.errors import ConfigError
from cpo_ray.inference.model_facts import read_model_facts
from cpo_ray.records import Tokens
from cpo_ray.sampling.negatives.registry import Limits
from cpo_ray.sampling.responses import encode_responses, load_tokenizer

UNLIMITED = 2**31 - 1  # positions of an architecture that sets no limit


@dataclass(frozen=True)
class Reference:
    """The reference model's directory and the facts from its configuration and tokenizer."""

    path: Path
    context: int  # positions
    eos: int
    vocabulary: int  # rows of the embedding
    other_eos: tuple[int, ...] = ()  # tokens besides `eos` that end a generation
    special: frozenset[int] = frozenset()  # ids of the tokenizer's special tokens


def read_reference(path: Path) -> Reference:
    """Read the configuration and the tokenizer in `path`. Raises ConfigError for a tokenizer without EOS."""
    tokenizer, facts = load_tokenizer(path), read_model_facts(path)
    eos = tokenizer.eos_token_id
    if eos is None:
        raise ConfigError(f"the tokenizer in {path} has no EOS token")
    if facts is None:  # only for a hub id that is not on this machine
        raise ConfigError(f"{path} is not a model's directory")
    special = frozenset(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    others = tuple(token for token in facts.stops if token != eos)
    return Reference(path, facts.context or UNLIMITED, eos, facts.vocabulary, others, special)


def candidate_limits(reference: Reference, max_tokens: int) -> Limits:
    """The limits of every candidate: at most `max_tokens`, with its EOS."""

    def encode(text: str) -> Tokens:
        return encode_responses(load_tokenizer(reference.path), [text], max_tokens)[0]

    return Limits(max_tokens, reference.eos, reference.vocabulary, encode)
