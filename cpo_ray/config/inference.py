"""vLLM engines, in sampling and in serving."""

from typing import Annotated

from pydantic import Field

from cpo_ray.config.section import EXECUTION, Auto, Section

ALONE = 0.85  # of a card's memory for an engine that has the card for itself


class EngineConfig(Section):
    """A vLLM engine."""

    kv_cache_gib: Annotated[float, Field(gt=0)] = Field(default=1.0, json_schema_extra=EXECUTION)
    """KV cache on a CPU machine, GiB. On GPUs vLLM uses the memory that is free within `gpu_memory_utilization`; where the
    engine shares a card, this is set to what is left of it."""
    gpu_memory_utilization: Auto[Annotated[float, Field(gt=0, le=1)]] = Field(default=None, json_schema_extra=EXECUTION)
    """Share of each GPU's memory that vLLM may use. `auto`: 0.85, or less where other programs or actors use the card."""
    tensor_parallel: Annotated[int, Field(ge=1)] = Field(default=1, json_schema_extra=EXECUTION)
    """GPUs per engine."""
    max_sequences: Annotated[int, Field(ge=1)] = Field(default=256, json_schema_extra=EXECUTION)
    """Maximum sequences decoded at the same time."""

    @property
    def memory_share(self) -> float:
        """Share of a card's memory for vLLM; that of a card of its own until the placement sets it."""
        return self.gpu_memory_utilization or ALONE
