"""Ray: a cluster of our own on loopback, or one that is there already."""

import contextlib
import os
from collections.abc import Iterator

from cpo_ray.config import ClusterConfig
from cpo_ray.errors import ClusterError


@contextlib.contextmanager
def ray_cluster(config: ClusterConfig) -> Iterator["LazyRay"]:
    """Yield what starts or joins Ray when first asked to; leave it at the end."""
    lazy = LazyRay(config)
    try:
        yield lazy
    finally:
        lazy.leave()


class LazyRay:
    """Ray, once it is needed: a run that reuses every stage starts nothing."""

    def __init__(self, config: ClusterConfig) -> None:
        self.config = config
        self.joined = False

    def ensure(self) -> None:
        """Start or join the cluster. Raises ClusterError where it cannot be reached."""
        if self.joined:
            return
        # Ray reports usage to a public host unless told not to, and warns about a future default for idle GPUs.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        import ray

        address = self.config.address or os.environ.get("RAY_ADDRESS")
        try:
            if address is None:
                ray.init(
                    num_cpus=self.config.local_cpus,
                    object_store_memory=int(self.config.object_store_gib * 2**30),
                    include_dashboard=False,
                    log_to_driver=False,
                    configure_logging=False,
                )
            else:
                ray.init(address=address, log_to_driver=False, configure_logging=False)
        except ConnectionError as error:
            raise ClusterError(f"no Ray cluster at {address}: {error}") from None
        self.joined = True

    def leave(self) -> None:
        """Disconnect; a cluster of our own ends with it."""
        if self.joined:
            import ray

            ray.shutdown()
            self.joined = False
