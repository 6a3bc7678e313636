import subprocess
import sys

import pytest

from cpo_ray.cluster import loopback


def test_loopback_addresses_are_recognised():
    assert all(map(loopback.is_loopback, ("127.0.0.1", "127.0.0.2", "::1", "localhost")))
    assert not any(map(loopback.is_loopback, ("0.0.0.0", "::", "10.0.0.1", "localhost.example")))


def test_gloo_gets_an_interface_only_on_loopback():
    assert loopback.gloo_environment("127.0.0.1", {}) == {"GLOO_SOCKET_IFNAME": "lo"}
    assert loopback.gloo_environment("10.0.0.1", {}) == {}
    assert loopback.gloo_environment("127.0.0.1", {"GLOO_SOCKET_IFNAME": "eth1"}) == {}


STORE = """
import psutil, socket
from datetime import timedelta
from torch.distributed import rendezvous
from cpo_ray.cluster.loopback import LoopbackWorker

LoopbackWorker(), LoopbackWorker()  # twice: a process may hold several
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
store, rank, size = next(rendezvous(f"tcp://127.0.0.1:{port}", rank=0, world_size=1, timeout=timedelta(seconds=20)))
store.set("it", "works")
connections = psutil.Process().net_connections("inet")
print(store.get("it").decode(), *{c.laddr.ip for c in connections if c.status == "LISTEN" and c.laddr.port == port})
"""


def test_a_torch_store_listens_only_on_its_clients_address():
    seen = subprocess.run([sys.executable, "-c", STORE], capture_output=True, text=True, timeout=120, check=False)
    assert seen.stdout.split() == ["works", "127.0.0.1"], seen.stderr


@pytest.mark.parametrize(("node", "address"), [("127.0.0.1", "127.0.0.1:0"), ("::1", "[::1]:0")])
def test_serves_grpc_server_gets_the_nodes_address(node, address):
    patched = loopback._port_on_node(lambda server, where: (server, where), node)
    assert patched("server", "[::]:0") == ("server", address)
    assert patched("server", "10.0.0.1:5") == ("server", "10.0.0.1:5")


def test_ray_still_has_the_function_that_is_patched():
    from ray.serve._private import replica

    assert callable(replica.add_port_to_grpc_server)
