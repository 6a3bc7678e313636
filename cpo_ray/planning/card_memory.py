"""Memory of one card while groups are sampled: what an engine, a scorer and an embedder need, at most."""

from dataclasses import dataclass

from cpo_ray.config import RunConfig
from cpo_ray.planning.activations import BYTES
from cpo_ray.planning.memory import LM_HEAD_BYTES
from cpo_ray.planning.model_size import ModelSize

GIB = 2**30
CONTEXT = 0.75 * GIB  # CUDA context and libraries of one process
GRAPHS = 1.0 * GIB  # vLLM's CUDA graphs
STEP_TOKENS = 8192  # of one step of the engine; vLLM's default for offline work, twice that on the largest cards
SCORED_TOKENS = 8192  # of one forward pass of the scorer (`BATCH_TOKENS` in sampling/scoring.py)
MEANFIELD = 3 * 4 * 2**26  # logits of meanfield draws (`BATCH_LOGITS` there), their softmax and its cumulative sum
EMBEDDER = 1.5 * GIB  # the bundled one: context, 0.1 GiB of weights, and a batch of texts
FEWEST_SEQUENCES = 64  # that must fit into the cache of an engine which shares its card; with fewer, phases are faster


@dataclass(frozen=True)
class SamplingMemory:
    """Bytes on one card. engine: without its KV cache; sequence: the cache of one sequence of the longest length.

    embedder: None if its size is unknown.
    """

    engine: float
    sequence: float
    sequences: int  # decoded at the same time, at most
    scorer: float
    embedder: float | None

    @property
    def smallest_engine(self) -> float:
        """The engine with the cache of FEWEST_SEQUENCES, or of all if they are fewer."""
        return self.engine + min(FEWEST_SEQUENCES, self.sequences) * self.sequence

    @property
    def largest_engine(self) -> float:
        """The engine with a cache for all its sequences: more is of no use."""
        return self.engine + self.sequences * self.sequence


def sampling_memory(config: RunConfig, shape: ModelSize) -> SamplingMemory:
    """What sampling from a model of this shape needs.

    With N parameters and b bytes per number, every model takes b*N for its weights (an engine a part of them per card).
    Activations are those of one block, as `planning/activations.py` counts them for the backward pass: an upper bound, because
    without one they are freed block by block. Besides, float32 logits: of an engine's sequences twice, of the scorer's a chunk.
    """
    sampling, data, b = config.sampling, config.data, BYTES[config.training.precision]
    weights, cards = b * shape.parameters, sampling.engine.tensor_parallel
    logits = 2 * 4 * sampling.engine.max_sequences * shape.vocabulary
    longest = data.max_prompt_tokens + config.candidates * data.max_response_tokens
    policies = 2 if sampling.refresh_steps is not None else 1  # the scorer keeps the reference beside the policy
    scorer = CONTEXT + policies * weights + max(SCORED_TOKENS, longest) * shape.block_bytes + LM_HEAD_BYTES
    return SamplingMemory(
        engine=CONTEXT + GRAPHS + (weights + STEP_TOKENS * shape.block_bytes) / cards + logits,
        sequence=(data.max_prompt_tokens + data.max_response_tokens)
        * shape.cache_bytes(config.training.precision)
        / cards,
        sequences=sampling.engine.max_sequences,
        scorer=scorer + (MEANFIELD if sampling.negatives.meanfield else 0),
        embedder=EMBEDDER if sampling.embedder == "minilm" else None,
    )
