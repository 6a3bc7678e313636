"""The torch process group of the workers: Ray Train's, but without an open port on the network in a local run."""

from dataclasses import dataclass
from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from cpo_ray.cluster.loopback import keep_torch_on_loopback


class LoopbackBackend(_TorchBackend):
    """If the master address is a loopback address, torch's store listens on loopback only."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Start the process group of all workers."""
        worker_group.execute(keep_torch_on_loopback)
        super().on_start(worker_group, backend_config)


@dataclass
class Rendezvous(TorchConfig):
    """Ray Train's TorchConfig with the backend above."""

    @property
    def backend_cls(self) -> type[LoopbackBackend]:
        """The class that starts the process group."""
        return LoopbackBackend
