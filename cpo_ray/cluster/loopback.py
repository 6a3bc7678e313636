"""Sockets that libraries open on every address of a machine, opened on loopback where their peers are there anyway.

A torch store and Ray Serve's inner gRPC server answer whoever can reach them, without a key. On a cluster of our own every
address that peers are told of is loopback, so nothing else has to be listened on.
"""

import functools
import importlib
import ipaddress
import socket
from collections.abc import Callable, Mapping
from typing import Any

BACKLOG = 2048  # torch's own
ANY = "[::]:"  # how gRPC spells every address


def is_loopback(host: str) -> bool:
    """True for `localhost` and loopback addresses."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def gloo_environment(node: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Settings for processes that meet over gloo, on the node of this address; what `environment` sets already stays.

    Gloo listens on the address that the host's name has, unless it is told an interface.
    """
    if not is_loopback(node) or "GLOO_SOCKET_IFNAME" in environment:
        return {}
    names = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    return {"GLOO_SOCKET_IFNAME": names[0]} if names else {}


def keep_torch_on_loopback() -> None:
    """From now on, a torch store that this process hosts under a loopback address listens there alone."""
    rendezvous: Any = importlib.import_module(
        "torch.distributed.rendezvous"
    )  # the package's own attribute is a function
    if not hasattr(rendezvous.TCPStore, "__wrapped__"):
        rendezvous.TCPStore = _narrow_store(rendezvous.TCPStore)


def keep_serve_on_loopback() -> None:
    """From now on, a Serve replica in this process listens on its node's address alone where that is loopback."""
    import ray
    from ray.serve._private import replica

    node = ray.util.get_node_ip_address()
    if is_loopback(node) and not hasattr(replica.add_port_to_grpc_server, "__wrapped__"):
        replica.add_port_to_grpc_server = _narrow_port(replica.add_port_to_grpc_server, node)


class LoopbackWorker:
    """Mixed into vLLM's worker by name (`worker_extension_cls`): made before the worker's store is opened."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        """As any class, after `keep_torch_on_loopback`."""
        keep_torch_on_loopback()
        return super().__new__(cls)


def _narrow_store(store: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(store)
    def narrowed(host_name: str, port: int, *, is_master: bool, **options: Any) -> Any:
        if is_master and is_loopback(host_name):
            family = socket.AF_INET6 if ":" in host_name else socket.AF_INET
            listener = socket.create_server((host_name, port), family=family, backlog=BACKLOG)
            options["master_listen_fd"] = listener.detach()  # the store closes it
        return store(host_name=host_name, port=port, is_master=is_master, **options)

    return narrowed


def _narrow_port(add: Callable[..., int], node: str) -> Callable[..., int]:
    @functools.wraps(add)
    def narrowed(server: Any, address: str) -> int:
        if address.startswith(ANY):
            address = (f"[{node}]:" if ":" in node else f"{node}:") + address.removeprefix(ANY)
        return add(server, address)

    return narrowed
