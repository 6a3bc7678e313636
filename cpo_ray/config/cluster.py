"""Where it runs."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from cpo_ray.config.section import Section


class ClusterConfig(Section):
    """Where it runs. Nothing here changes a result."""

    address: str | None = None
    """A Ray cluster's address, or `auto`. Default: what RAY_ADDRESS says, else a cluster of its own on this machine, on
    loopback, ended with the run."""
    wait_s: Annotated[float, Field(gt=0)] = 1800.0
    """How long a stage waits until the cluster has free what it needs, while its autoscaler starts machines."""
    local_cpus: Annotated[int, Field(ge=1)] = 8
    """Logical CPUs of the cluster of its own. Most actors wait for each other, so more than the cores is right."""
    object_store_gib: Annotated[float, Field(gt=0)] = 1.0
    """Object store of the cluster of its own."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    """GPUs of each training worker, scorer and embedder; 0 on a CPU machine. Where it is not 0, an engine takes
    `tensor_parallel` GPUs."""
    threads_per_worker: Annotated[int, Field(ge=1)] = 1
    """CPU threads of each training worker."""
    placement: Literal["PACK", "SPREAD"] = "PACK"
    """How training workers lie on the machines: on as few as will do, where they exchange gradients fastest, or over as many
    as there are."""
    checkpoint_storage: str | None = None
    """Where training checkpoints go: a folder that all nodes see, or `s3://bucket/prefix` (through fsspec). Runs may
    share it: each has its own folders there, known by the path of its run directory. Default: the run directory."""
    artifact_store: Path | None = None
    """A folder that several runs share: what one has finished, another with the same inputs takes over. A sweep over `beta`
    then makes data, reference and groups once. Default: every run makes its own."""
