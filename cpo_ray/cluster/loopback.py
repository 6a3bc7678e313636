"""Bind sockets to loopback that libraries would bind to every address of the machine.

torch's TCPStore and Ray Serve's internal gRPC server accept any client that can reach them, without a key. In a local
cluster all peers connect through loopback, so these servers need to listen nowhere else.
"""

import functools
import importlib
import ipaddress
import socket
from collections.abc import Callable, Mapping
from typing import Any

BACKLOG = 2048  # torch's default
ANY_ADDRESS = "[::]:"  # gRPC's notation for all addresses


def is_loopback(host: str) -> bool:
    """True for `localhost` and loopback addresses; any other name may resolve to any address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def gloo_environment(node: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Environment variables that make gloo listen on loopback if the node's address is loopback; existing ones are kept.

    Without GLOO_SOCKET_IFNAME, gloo listens on the address that the host name resolves to.
    """
    if not is_loopback(node) or "GLOO_SOCKET_IFNAME" in environment:
        return {}
    names = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    return {"GLOO_SOCKET_IFNAME": names[0]} if names else {}


def keep_torch_on_loopback() -> None:
    """Patch torch so that a TCPStore hosted in this process under a loopback address listens on loopback only."""
    # import_module: the attribute torch.distributed.rendezvous is a function
    rendezvous: Any = importlib.import_module("torch.distributed.rendezvous")
    if not hasattr(rendezvous.TCPStore, "__wrapped__"):
        rendezvous.TCPStore = _store_on_loopback(rendezvous.TCPStore)


def keep_serve_on_loopback() -> None:
    """Patch Ray Serve so that a replica in this process listens on loopback only, if its node's address is loopback."""
    import ray
    from ray.serve._private import replica

    node = ray.util.get_node_ip_address()
    if is_loopback(node) and not hasattr(replica.add_port_to_grpc_server, "__wrapped__"):
        replica.add_port_to_grpc_server = _port_on_node(replica.add_port_to_grpc_server, node)


class LoopbackWorker:
    """Mixed into vLLM's worker by dotted name (`worker_extension_cls`); patches torch before the worker opens its store."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        """Call `keep_torch_on_loopback` first."""
        keep_torch_on_loopback()
        return super().__new__(cls)


def _store_on_loopback(store: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(store)
    def patched(host_name: str, port: int, *, is_master: bool, **options: Any) -> Any:
        if is_master and is_loopback(host_name):
            family = socket.AF_INET6 if ":" in host_name else socket.AF_INET
            listener = socket.create_server((host_name, port), family=family, backlog=BACKLOG)
            options["master_listen_fd"] = listener.detach()  # the store takes ownership and closes it
        return store(host_name=host_name, port=port, is_master=is_master, **options)

    return patched


def _port_on_node(add: Callable[..., int], node: str) -> Callable[..., int]:
    @functools.wraps(add)
    def patched(server: Any, address: str) -> int:
        if address.startswith(ANY_ADDRESS):
            address = (f"[{node}]:" if ":" in node else f"{node}:") + address.removeprefix(ANY_ADDRESS)
        return add(server, address)

    return patched
