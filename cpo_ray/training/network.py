"""NCCL between machines: settings for EFA, and a warning if it uses slow sockets instead.

NCCL reports its transport only in its own log, so each worker writes one (NCCL_DEBUG_FILE), which the first worker reads once.
Sources: aws/aws-ofi-nccl (the plugin's lines), NVIDIA's NCCL (`Using network`, `Assigned NET plugin`).
"""

import os
import re
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

LOG = "/tmp/cpo_ray-nccl-%h-%p.log"  # noqa: S108 - on the worker's machine; NCCL fills in host and process
CHOICE = re.compile(r"NCCL INFO (?:Using network|Assigned NET plugin) (.+?)(?: to comm)?\s*$", re.MULTILINE)
PROVIDER = re.compile(r"NET/OFI Selected [Pp]rovider is ([\w.-]+)")
FAST_PROVIDERS = {"efa", "cxi", "verbs"}


def nccl_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Environment variables for training workers on GPUs, without those that `environment` already sets.

    The EFA setting has no effect without EFA: the plugin finds its provider by itself. NCCL's first handshake always uses
    sockets; they avoid loopback and Docker's bridge.
    """
    settings = {
        "FI_EFA_USE_DEVICE_RDMA": "1",  # GPUDirect RDMA: p4d and newer
        "NCCL_SOCKET_IFNAME": "^lo,docker",
        "NCCL_DEBUG": "INFO",
        "NCCL_DEBUG_SUBSYS": "INIT,NET",
        "NCCL_DEBUG_FILE": LOG,
    }
    return {name: value for name, value in settings.items() if name not in environment}


def find_transport(log: str) -> str | None:
    """NCCL's transport between machines, from the log of one process: `efa`, `IB`, `Socket`, `Libfabric over tcp`, or None."""
    chosen = CHOICE.findall(log)
    if not chosen:
        return None
    if "libfabric" not in chosen[-1].lower():
        return str(chosen[-1])
    providers = PROVIDER.findall(log)
    if not providers:
        return "Libfabric"
    return str(providers[-1]) if providers[-1] in FAST_PROVIDERS else f"Libfabric over {providers[-1]}"


def transport_warning(transport: str | None, nodes: int) -> str | None:
    """A warning for the user if the transport is slow, otherwise None."""
    if nodes < 2 or transport is None or not re.search(r"socket|over (tcp|sockets|udp)", transport, re.IGNORECASE):
        return None
    return (
        f"NCCL uses {transport} between the {nodes} machines: ten times slower than EFA or InfiniBand. On AWS: are the "
        "workers' interfaces of type efa (cluster.yaml), does the machine image contain aws-ofi-nccl, is its folder in "
        "LD_LIBRARY_PATH (aws/node.sh)? `fi_info -p efa` on a worker must list devices"
    )


def warn_about_slow_network(notify: Callable[[str], None]) -> None:
    """Read the NCCL log of this worker and pass a warning to `notify` if the transport is slow. Call it after a collective."""
    nodes = int(os.environ.get("WORLD_SIZE", "1")) // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    file = Path(log_path(os.environ.get("NCCL_DEBUG_FILE", LOG), socket.gethostname(), os.getpid()))
    if file.is_file():
        warning = transport_warning(find_transport(file.read_text(errors="replace")), nodes)
        if warning is not None:
            notify(warning)


def log_path(pattern: str, host: str, process: int) -> str:
    """The file that NCCL writes for this pattern. It uses the host name up to the first dot."""
    return pattern.replace("%h", host.partition(".")[0]).replace("%p", str(process))
