"""vLLM engines, in sampling and in serving."""

from typing import Annotated

from pydantic import Field

from cpo_ray.config.section import EXECUTION, Section


class EngineConfig(Section):
    """A vLLM engine."""

    kv_cache_gib: Annotated[float, Field(gt=0)] = Field(default=1.0, json_schema_extra=EXECUTION)
    """KV cache on a CPU machine, GiB. On GPUs vLLM uses the memory that is free within `gpu_memory_utilization`."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = Field(default=0.85, json_schema_extra=EXECUTION)
    """Share of each GPU's memory that vLLM may use."""
    tensor_parallel: Annotated[int, Field(ge=1)] = Field(default=1, json_schema_extra=EXECUTION)
    """GPUs per engine."""
    max_sequences: Annotated[int, Field(ge=1)] = Field(default=256, json_schema_extra=EXECUTION)
    """Maximum sequences decoded at the same time."""
