"""The Ray cluster that runs the stages."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from cpo_ray.config.section import Section


class ClusterConfig(Section):
    """The Ray cluster and its resources. Nothing here changes a result."""

    address: str | None = None
    """A Ray cluster's address, or `auto`. Default: the value of RAY_ADDRESS; without it a local cluster on this machine, on
    loopback, which stops with the run."""
    wait_s: Annotated[float, Field(gt=0)] = 1800.0
    """How long, in seconds, a stage waits for free resources, for instance while the autoscaler starts machines."""
    local_cpus: Annotated[int, Field(ge=1)] = 8
    """Logical CPUs of the local cluster. Most actors wait for each other, so this may exceed the number of cores."""
    object_store_gib: Annotated[float, Field(gt=0)] = 1.0
    """Object store of the local cluster, GiB."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    """GPUs of each training worker, scorer and embedder; 0 on a CPU machine. If it is not 0, each vLLM engine takes
    `tensor_parallel` GPUs."""
    threads_per_worker: Annotated[int, Field(ge=1)] = 1
    """CPU threads of each training worker."""
    placement: Literal["PACK", "SPREAD"] = "PACK"
    """How training workers are placed: `PACK` on as few machines as possible, where gradients are exchanged fastest, or
    `SPREAD` over as many as possible."""
    checkpoint_storage: str | None = None
    """Folder for training checkpoints: one that all nodes see, or `s3://bucket/prefix` (through fsspec). Several runs may
    share it: each has its own folders, whose names contain a hash of its directory's path. Default: the run directory."""
    artifact_store: Path | None = None
    """A folder of stage outputs that several runs share: a stage finished by one run is reused by another with the same inputs.
    A sweep over `beta` then makes data, reference and groups once. Default: every run makes its own."""
