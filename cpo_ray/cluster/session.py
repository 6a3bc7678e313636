"""Ray: a cluster of our own on loopback, or one that is there already; and waiting, within bounds, for what a stage needs."""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from cpo_ray.config import ClusterConfig
from cpo_ray.errors import ClusterError
from cpo_ray.monitoring.console import say

Bundle = Mapping[str, float]  # resources that one process needs on one node, by Ray's names

FOUND_BY_RAY = {"auto", "local"}
NO_CLUSTER = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
ADMISSION = "The cluster's token must be in ~/.ray/auth_token or RAY_AUTH_TOKEN_PATH"
REACH_S = 10.0  # a head that does not answer within this will not; Ray itself would ask for nine minutes
POLL_S = 1  # whole seconds: a placement group takes no others
REMIND_S = 30.0
OWN_CLUSTER_WAIT_S = 60.0  # nothing is added to a cluster of our own; only the last stage's processes still end


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
        self.scope = contextlib.ExitStack()

    def ensure(self, needs: Sequence[Bundle] = ()) -> None:
        """Start or join the cluster, and wait until `needs` are free on it at once.

        Raises ClusterError where it cannot be reached, or does not offer them within `cluster.wait_s`.
        """
        address = self.config.address or os.environ.get("RAY_ADDRESS")
        if not self.joined:
            self._join(address)
        if needs:
            own = address is None
            wait_for(needs, min(OWN_CLUSTER_WAIT_S, self.config.wait_s) if own else self.config.wait_s)

    def _join(self, address: str | None) -> None:
        # Ray reports usage to a public host unless told not to, and warns about a future default for idle GPUs.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        if address is None:
            self.scope.enter_context(_on_loopback())
        elif "://" not in address and address not in FOUND_BY_RAY:
            refuse_silence(address)
        import ray
        from ray.exceptions import AuthenticationError

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
            raise ClusterError(f"no Ray cluster at {address}: {error}. {ADMISSION}, if it asks for one") from None
        except AuthenticationError as error:
            raise ClusterError(f"{address}: {str(error).strip().splitlines()[0]}. {ADMISSION}") from None
        self.joined = True

    def leave(self) -> None:
        """Disconnect; a cluster of our own ends with it."""
        if self.joined:
            import ray

            ray.shutdown()
            self.joined = False
        self.scope.close()


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Make Ray listen on 127.0.0.1 alone.

    Its ports are bound to every address unless the node's own is 127.0.0.1, and Ray takes that for a node's address only
    where it is told that this machine forms no cluster with others: a switch made for laptops.
    """
    before = os.environ.get(NO_CLUSTER)
    os.environ[NO_CLUSTER] = "0"  # for Ray's own processes
    from ray._private import ray_constants

    enabled = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False  # for this one, where Ray was imported before
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = enabled
        if before is None:
            del os.environ[NO_CLUSTER]
        else:
            os.environ[NO_CLUSTER] = before


def refuse_silence(address: str) -> None:
    """Raise ClusterError where `address` is no host:port, or nobody listens there."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ClusterError(f"cluster.address or RAY_ADDRESS is {address!r}: give host:port of the head's GCS, or auto")
    from ray._private.services import resolve_ip_for_localhost

    try:
        host = resolve_ip_for_localhost(host.strip("[]"))  # for localhost, Ray asks this machine's outer address
        socket.create_connection((host, int(port)), timeout=REACH_S).close()
    except (OSError, UnicodeError) as error:  # UnicodeError: no host can have this name
        raise ClusterError(
            f"no Ray cluster at {host}:{port}: {error}. Has it started, and is this its GCS (port 6379 of the head)?"
        ) from None


def wait_for(needs: Sequence[Bundle], timeout_s: float, tell: Callable[[str], None] = say) -> None:
    """Wait until all of `needs` fit on the cluster at once; `tell` what is lacking every half minute.

    A placement group asks for them, so the autoscaler starts machines and what fits is Ray's own judgement; it is given
    back at once. Raises ClusterError after `timeout_s`.
    """
    import ray
    from ray.util import placement_group, remove_placement_group

    group = placement_group([dict(need) for need in needs], strategy="PACK")
    started = told = time.monotonic()
    try:
        while not group.wait(POLL_S):
            now = time.monotonic()
            lacking = describe_lack(needs, ray.cluster_resources(), ray.available_resources())
            if now - started >= timeout_s:
                raise ClusterError(f"{lacking}; waited {now - started:.0f} s (cluster.wait_s). {REMEDY}")
            if now - told >= REMIND_S:
                told = now
                tell(f"  [yellow]waiting[/] {lacking}; {now - started:.0f} s so far, {timeout_s:.0f} s at most")
    finally:
        remove_placement_group(group)


REMEDY = (
    "`ray status` says what the autoscaler tries: is max_workers of cluster.yaml large enough, has the account the quota, "
    "is another job running? Fewer training.workers need less."
)


def describe_lack(needs: Sequence[Bundle], there: Bundle, free: Bundle) -> str:
    """What is needed, what the cluster has, and how much of that is free, in one line."""
    total: dict[str, float] = {}
    for need in needs:
        for name, amount in need.items():
            total[name] = total.get(name, 0.0) + amount
    parts = [f"needed: {_count(total, total)}", f"there: {_count(there, total)}", f"free: {_count(free, total)}"]
    largest = max(needs, key=lambda need: need.get("GPU", 0))
    return ", ".join(parts) + f" (in {len(needs)} bundles, the largest {_count(largest, largest)} on one node)"


def _count(amounts: Bundle, names: Mapping[str, float]) -> str:
    return " + ".join(f"{amounts.get(name, 0):g} {name}" for name in sorted(names, reverse=True) if names[name])
