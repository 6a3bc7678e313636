"""NCCL between machines: settings for EFA, and a warning where it crawls over sockets instead.

What NCCL chose is in its own log alone, so each worker has one (NCCL_DEBUG_FILE) that the first worker reads once.
Sources: aws/aws-ofi-nccl (the plugin's lines), NVIDIA's NCCL (`Using network`, `Assigned NET plugin`).
"""

import os
import re
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

LOG = "/tmp/cpo_ray-nccl-%h-%p.log"  # noqa: S108 - on the worker's machine; NCCL puts host and process in
CHOICE = re.compile(r"NCCL INFO (?:Using network|Assigned NET plugin) (.+?)(?: to comm)?\s*$", re.MULTILINE)
PROVIDER = re.compile(r"NET/OFI Selected [Pp]rovider is ([\w.-]+)")
FAST_PROVIDERS = {"efa", "cxi", "verbs"}


def nccl_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Settings for training workers on GPUs; what `environment` sets already stays as it is.

    EFA's changes nothing where there is no EFA: the plugin finds its provider by itself. Sockets, which carry NCCL's first
    handshake in any case, keep off loopback and Docker's bridge.
    """
    settings = {
        "FI_EFA_USE_DEVICE_RDMA": "1",  # GPU memory straight to the network card: p4d and newer
        "NCCL_SOCKET_IFNAME": "^lo,docker",
        "NCCL_DEBUG": "INFO",
        "NCCL_DEBUG_SUBSYS": "INIT,NET",
        "NCCL_DEBUG_FILE": LOG,
    }
    return {name: value for name, value in settings.items() if name not in environment}


def find_transport(log: str) -> str | None:
    """What carries NCCL between machines, from one process's log: `efa`, `IB`, `Socket`, `Libfabric over tcp`, or None."""
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
    """What to tell the user about it, if anything."""
    if nodes < 2 or transport is None or not re.search(r"socket|over (tcp|sockets|udp)", transport, re.IGNORECASE):
        return None
    return (
        f"NCCL talks between the {nodes} machines over {transport}: ten times slower than EFA or InfiniBand. On AWS: are the "
        "workers' interfaces of type efa (cluster.yaml), does the machine image hold aws-ofi-nccl, is its folder in "
        "LD_LIBRARY_PATH (aws/node.sh)? `fi_info -p efa` on a worker must list devices"
    )


def warn_of_slow_network(tell: Callable[[str], None]) -> None:
    """Read this worker's NCCL log, once collectives have run, and `tell` what is wrong with it."""
    nodes = int(os.environ.get("WORLD_SIZE", "1")) // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    file = Path(log_path(os.environ.get("NCCL_DEBUG_FILE", LOG), socket.gethostname(), os.getpid()))
    if file.is_file():
        warning = transport_warning(find_transport(file.read_text(errors="replace")), nodes)
        if warning is not None:
            tell(warning)


def log_path(pattern: str, host: str, process: int) -> str:
    """Where NCCL writes: it takes the host's name up to the first dot."""
    return pattern.replace("%h", host.partition(".")[0]).replace("%p", str(process))
