"""Stage `sampling`."""

from typing import Annotated

from pydantic import Field, model_validator

from cpo_ray.config.engine import EngineConfig
from cpo_ray.config.section import EXECUTION, Section
from cpo_ray.records import NEGATIVE_KINDS


class NegativeCounts(Section):
    """Negatives per prompt and kind. Their sum is K - 1 (the paper's MixN: 3 batch, 5 meanfield, 3 truncation)."""

    autoregressive: Annotated[int, Field(ge=0)] = 0
    """Sampled from the reference by vLLM."""
    batch: Annotated[int, Field(ge=0)] = 3
    """Other prompts' responses."""
    meanfield: Annotated[int, Field(ge=0)] = 5
    """The gold with a share of its tokens resampled independently from the reference."""
    truncation: Annotated[int, Field(ge=0)] = 3
    """The gold cut short."""

    @model_validator(mode="after")
    def _check(self) -> "NegativeCounts":
        if self.total == 0:
            raise ValueError("K = 1: at least one negative per prompt is needed (K >= 2)")
        return self

    @property
    def total(self) -> int:
        """K - 1."""
        return sum(getattr(self, kind, 0) for kind in NEGATIVE_KINDS)


class SamplingConfig(Section):
    """Stage `sampling`: negatives, reference log-probs, ranks."""

    rows: Annotated[int, Field(ge=2)] | None = None
    """Make groups for the first `rows` training rows only. Default: all."""
    negatives: NegativeCounts = NegativeCounts()
    """How many of each kind."""
    top_k: Annotated[int, Field(ge=1)] = 50
    """Top-k of autoregressive negatives (the paper: 50)."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Temperature of autoregressive negatives."""
    meanfield_fraction: Annotated[float, Field(gt=0, le=1)] = 0.15
    """Share of the gold's tokens that a meanfield negative resamples (the paper: 0.15). At least one, never EOS."""
    batch_rows: Annotated[int, Field(ge=2)] = 64
    """Prompts that exchange responses as batch negatives: consecutive rows of the training split."""
    shard_rows: Annotated[int, Field(ge=2)] = Field(default=256, json_schema_extra=EXECUTION)
    """Prompts per shard of the groups artifact. A killed run continues with the missing shards."""
    embedder: str = "minilm"
    """What ranks: `minilm` (all-MiniLM-L6-v2, bundled), a sentence-transformers directory, or a hub id."""
    engine: EngineConfig = EngineConfig()
    """The engine of autoregressive negatives."""
