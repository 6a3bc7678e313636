"""The cost of a group, without computing it: its tokens, the pairs of tokens that attend, and the FLOPs of both."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from cpo_ray.objective.quantization import count_numbers
from cpo_ray.records import Tokens


@dataclass(frozen=True)
class GroupSize:
    """The size of a token tree."""

    tokens: int  # nodes
    pairs: int  # (query, key) pairs that attend: the sum of the depths of all nodes
    sources: int  # nodes whose hidden state goes through the LM head


@dataclass(frozen=True)
class ModelShape:
    """FLOPs of a model's forward pass per token, pair and source, two per multiply-add."""

    per_token: float
    per_pair: float
    per_source: float

    def forward_flops(self, size: GroupSize) -> float:
        """FLOPs of one forward pass; a backward pass takes twice as many (Kaplan et al. 2020, section 2.1)."""
        return self.per_token * size.tokens + self.per_pair * size.pairs + self.per_source * size.sources


def measure_group(prompt: Tokens, candidates: Sequence[Tokens]) -> GroupSize:
    """The size of the tree that `packing.grow_tree` would build."""
    tokens, sources = len(prompt), 1  # the prompt's last token goes through the head
    pairs = tokens * (tokens + 1) // 2
    previous: Tokens = []
    for candidate in sorted(candidates):
        shared = 0
        for a, b in zip(previous, candidate, strict=False):
            if a != b:
                break
            shared += 1
        first = min(shared, len(previous) - 1) if previous else 0  # a candidate's last token is not a node
        fresh = max(0, len(candidate) - 1 - first)
        tokens += fresh
        sources += fresh
        depth = len(prompt) + first
        pairs += fresh * depth + fresh * (fresh + 1) // 2
        previous = candidate
    return GroupSize(tokens, pairs, sources)


def model_shape(model: PreTrainedModel) -> ModelShape:
    """FLOPs per token, pair and source of a decoder: every matrix but embeddings and head, then attention, then the head."""
    head = model.get_output_embeddings().weight
    matrices = sum(count_numbers(p) for name, p in model.named_parameters() if p.dim() == 2 and not _is_embedding(name))
    tied = model.get_input_embeddings().weight is head
    inner = matrices - (0 if tied else head.numel())
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_attention_heads", None) or 1  # state spaces have none: their scans are not counted
    width = (getattr(config, "head_dim", None) or config.hidden_size // heads) * heads
    return ModelShape(2.0 * inner, 4.0 * config.num_hidden_layers * width, 2.0 * head.numel())


def _is_embedding(name: str) -> bool:
    return any(part in name for part in ("embed", "wte", "wpe"))
