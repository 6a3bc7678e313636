"""How training workers meet: as Ray Train has them meet, without a port that strangers can reach in a local run."""

from dataclasses import dataclass
from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from cpo_ray.cluster.loopback import keep_torch_on_loopback


class LoopbackBackend(_TorchBackend):
    """Where the workers are told a loopback address, their store listens there alone."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Start the process group."""
        worker_group.execute(keep_torch_on_loopback)
        super().on_start(worker_group, backend_config)


@dataclass
class Rendezvous(TorchConfig):
    """Ray Train's own settings of a torch process group."""

    @property
    def backend_cls(self) -> type[LoopbackBackend]:
        """What starts the group."""
        return LoopbackBackend
