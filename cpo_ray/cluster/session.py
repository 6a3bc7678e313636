"""Start a local Ray cluster on loopback, or join an existing one."""

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence

from cpo_ray.cluster.cards import Cards, local_cards, read_memory, wait_until_released
from cpo_ray.cluster.waiting import FIXED, Bundle, wait_for
from cpo_ray.config import ClusterConfig
from cpo_ray.errors import ClusterError

RAY_KEYWORDS = {"auto", "local"}  # addresses that Ray resolves itself
MULTI_NODE_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
AUTH_HINT = "The cluster's token must be in ~/.ray/auth_token or RAY_AUTH_TOKEN_PATH"
CONNECT_TIMEOUT_S = 10.0  # Ray itself would retry for nine minutes
LOCAL_WAIT_S = 60.0  # a local cluster gets no new nodes; only the previous stage's processes have to exit


@contextlib.contextmanager
def ray_cluster(config: ClusterConfig) -> Iterator["LazyRay"]:
    """Yield a LazyRay, which starts or joins Ray on the first `ensure`; disconnect at the end."""
    lazy = LazyRay(config)
    try:
        yield lazy
    finally:
        lazy.leave()


class LazyRay:
    """A Ray session that starts when it is first needed: a run that reuses every stage starts nothing."""

    def __init__(self, config: ClusterConfig) -> None:
        self.config = config
        self.joined = False
        self.scope = contextlib.ExitStack()
        # Before any process of this run: what others use of the cards. A cluster's cards are on other machines.
        self.cards = read_memory() if config.uses_cuda and self.address is None else []

    @property
    def address(self) -> str | None:
        """Of the cluster to join; None for a local one."""
        return cluster_address(self.config)

    def ensure(self, bundles: Sequence[Bundle] = ()) -> None:
        """Start or join the cluster, then wait until all `bundles` are free at once, and on this machine the cards' memory.

        Raises ClusterError if the cluster cannot be reached, if the resources are not free within `cluster.wait_s`, or if a
        process keeps memory of a card.
        """
        local = self.address is None
        if not self.joined:
            self._join(self.address)
        if bundles:
            timeout_s = self.config.wait_s
            if local:
                wait_for(bundles, min(LOCAL_WAIT_S, timeout_s), remedy=FIXED)
            else:
                wait_for(bundles, timeout_s)
        if any(bundle.get("GPU") for bundle in bundles):
            wait_until_released(self.cards)

    def _join(self, address: str | None) -> None:
        # By default Ray reports usage to a public host, and warns about a future default for idle GPUs.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        if address is None:
            self.scope.enter_context(_on_loopback())
        elif "://" not in address and address not in RAY_KEYWORDS:
            check_reachable(address)
        import ray
        from ray.exceptions import AuthenticationError

        try:
            if address is None:
                ray.init(
                    num_cpus=self.config.local_cpus,
                    num_gpus=self.config.gpus,
                    object_store_memory=int(self.config.object_store_gib * 2**30),
                    include_dashboard=False,
                    log_to_driver=False,
                    configure_logging=False,
                )
            else:
                ray.init(address=address, log_to_driver=False, configure_logging=False)
        except ConnectionError as error:
            raise ClusterError(f"no Ray cluster at {address}: {error}. {AUTH_HINT}, if it requires one") from None
        except AuthenticationError as error:
            raise ClusterError(f"{address}: {str(error).strip().splitlines()[0]}. {AUTH_HINT}") from None
        self.joined = True

    def leave(self) -> None:
        """Disconnect. A local cluster is shut down."""
        if self.joined:
            import ray

            ray.shutdown()
            self.joined = False
        self.scope.close()


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Make a local Ray cluster listen on 127.0.0.1 only.

    Ray binds its ports to every address unless the node's own address is 127.0.0.1, and uses that address only if
    multi-node clusters are disabled, a switch made for Windows and macOS.
    """
    before = os.environ.get(MULTI_NODE_VARIABLE)
    os.environ[MULTI_NODE_VARIABLE] = "0"  # for Ray's own processes
    from ray._private import ray_constants

    enabled = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False  # for this process, in case Ray was imported before
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = enabled
        if before is None:
            del os.environ[MULTI_NODE_VARIABLE]
        else:
            os.environ[MULTI_NODE_VARIABLE] = before


def cluster_address(config: ClusterConfig) -> str | None:
    """Of the cluster that a run joins; None if it starts one on this machine."""
    return config.address or os.environ.get("RAY_ADDRESS")


def find_cards(config: ClusterConfig) -> Cards:
    """The GPUs of this machine, or those of the cluster's present machines."""
    if cluster_address(config) is None:
        return local_cards()
    with ray_cluster(config) as session:
        session.ensure()
        import ray

        return Cards(int(ray.cluster_resources().get("GPU", 0)), local=False)


def check_reachable(address: str) -> None:
    """Raise ClusterError if `address` is not host:port, or if nothing accepts connections there."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ClusterError(f"cluster.address or RAY_ADDRESS is {address!r}: give host:port of the head's GCS, or auto")
    from ray._private.services import resolve_ip_for_localhost

    try:
        host = resolve_ip_for_localhost(host.strip("[]"))  # Ray replaces localhost by this machine's external address
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, UnicodeError) as error:  # UnicodeError: not a valid host name
        raise ClusterError(
            f"no Ray cluster at {host}:{port}: {error}. Has it started, and is this its GCS (port 6379 of the head)?"
        ) from None
