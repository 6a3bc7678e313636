"""The Ray cluster that runs the stages."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from cpo_ray.config.section import Auto, Section


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
    gpus: Auto[Annotated[int, Field(ge=0)]] = None
    """GPUs that the run uses; 0: it computes on the CPU. `auto`: those of this machine, or with `address` those of the cluster.
    Which process gets them, and when, is printed by `validate`: see [One GPU](cluster.md#one-gpu)."""
    gpus_per_worker: Auto[Annotated[float, Field(ge=0)]] = None
    """GPUs of each training worker, scorer and embedder; 0: they compute on the CPU. `auto`: 1 where there are GPUs, and less
    where scorer and embedder share one. If it is not 0, each vLLM engine takes `tensor_parallel` GPUs."""
    device: Literal["cuda", "cpu"] = "cuda"
    """Where a process with a GPU computes. `cpu`: GPUs are only counted, to try a placement on a machine that has none
    (`gpus: 1, device: cpu`)."""
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

    @model_validator(mode="after")
    def _check(self) -> "ClusterConfig":
        if self.gpus == 0 and self.gpus_per_worker:
            raise ValueError(
                f"gpus 0 and gpus_per_worker {self.gpus_per_worker:g} contradict each other: leave out gpus_per_worker, or "
                "set gpus to auto"
            )
        return self

    @property
    def worker_gpus(self) -> float:
        """GPUs of each training worker, and of whatever else has none of its own in the configuration."""
        if self.gpus_per_worker is not None:
            return self.gpus_per_worker
        return 1.0 if self.gpus else 0.0

    @property
    def uses_cuda(self) -> bool:
        """Whether training workers and engines compute on GPUs."""
        return self.device_of(self.worker_gpus) == "cuda"

    def device_of(self, gpus: float) -> str:
        """The torch device of a process with `gpus` GPUs."""
        return "cuda" if gpus and self.device == "cuda" else "cpu"
