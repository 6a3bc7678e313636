"""vLLM, in sampling and in serving."""

from typing import Annotated

from pydantic import Field

from cpo_ray.config.section import EXECUTION, Section


class EngineConfig(Section):
    """The vLLM engine, in sampling and in serving."""

    kv_cache_gib: Annotated[float, Field(gt=0)] = Field(default=1.0, json_schema_extra=EXECUTION)
    """KV cache on a CPU machine, GiB. On GPUs vLLM takes what `gpu_memory_utilization` leaves."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = Field(default=0.85, json_schema_extra=EXECUTION)
    """Share of each GPU's memory that vLLM may take."""
    tensor_parallel: Annotated[int, Field(ge=1)] = Field(default=1, json_schema_extra=EXECUTION)
    """GPUs per engine."""
    max_sequences: Annotated[int, Field(ge=1)] = Field(default=256, json_schema_extra=EXECUTION)
    """Sequences decoded at once."""
