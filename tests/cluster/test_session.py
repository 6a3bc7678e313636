import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
from ray.exceptions import AuthenticationError

from cpo_ray.cluster import session
from cpo_ray.cluster.cards import CardMemory
from cpo_ray.cluster.session import LazyRay
from cpo_ray.cluster.waiting import FIXED
from cpo_ray.config import ClusterConfig
from cpo_ray.errors import ClusterError


@pytest.fixture
def fake_ray(monkeypatch):
    """Record the addresses passed to `ray.init`, and optionally make it raise `answer`."""
    import ray

    calls = SimpleNamespace(addresses=[], answer=None)

    def init(address, **_):
        calls.addresses.append(address)
        if calls.answer is not None:
            raise calls.answer

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return calls


@pytest.mark.parametrize("address", ["foo", "foo:", ":6379", "10.0.0.1:gcs", "10.0.0.1:66000"])
def test_an_invalid_address_is_refused(fake_ray, address):
    with pytest.raises(ClusterError, match=r"cluster\.address or RAY_ADDRESS is .* give host:port"):
        LazyRay(ClusterConfig(address=address)).ensure()
    assert fake_ray.addresses == []


def test_an_unreachable_address_fails_before_ray_init(fake_ray):
    """`ray.init` would retry for nine minutes."""
    with socket.socket() as listening:
        listening.bind(("", 0))  # all addresses, because Ray replaces localhost by another one
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(ClusterError, match=r"no Ray cluster at \S+: .*refused.*port 6379"):
            LazyRay(ClusterConfig(address=address)).ensure()
        assert fake_ray.addresses == []
        listening.listen()
        LazyRay(ClusterConfig(address=address)).ensure()
    assert fake_ray.addresses == [address]


@pytest.mark.parametrize("address", ["auto", "local", "ray://nowhere.invalid:10001"])
def test_addresses_that_ray_resolves_itself_are_passed_on(fake_ray, address):
    LazyRay(ClusterConfig(address=address)).ensure()
    assert fake_ray.addresses == [address]


@pytest.mark.parametrize("answer", [AuthenticationError("Token missing"), ConnectionError("Failed to connect")])
def test_a_rejected_token_is_reported_with_its_places(fake_ray, answer):
    fake_ray.answer = answer
    with pytest.raises(ClusterError, match=r"(Token missing|Failed to connect).*RAY_AUTH_TOKEN_PATH"):
        LazyRay(ClusterConfig(address="auto")).ensure()


@pytest.mark.e2e
def test_a_local_cluster_waits_within_bounds_and_listens_only_on_loopback():
    """One cluster for both checks, in a separate process: its sockets are those of all its children."""
    seen = subprocess.run([sys.executable, "-c", LOCAL_RUN], capture_output=True, text=True, timeout=120, check=False)
    assert seen.returncode == 0, seen.stderr
    lines = seen.stdout.splitlines()
    listening = [line.split()[1] for line in lines if line.startswith("listens")]
    assert len(listening) >= 6  # gcs, raylet, agents, workers, this driver
    assert {address.removeprefix("::ffff:") for address in listening} <= {"127.0.0.1", "::1"}
    assert any("enough" in line for line in lines)
    (error,) = [line for line in lines if line.startswith("error")]
    assert "needed: 3 CPU, total: 2 CPU, free: 2 CPU" in error
    assert "cluster.wait_s" in error


LOCAL_RUN = """
import time, psutil
from cpo_ray.cluster.session import LazyRay
from cpo_ray.config import ClusterConfig
from cpo_ray.errors import ClusterError

lazy = LazyRay(ClusterConfig(local_cpus=2, object_store_gib=0.1, wait_s=3))
lazy.ensure([{"CPU": 1}, {"CPU": 1}])
print("enough")
try:
    lazy.ensure([{"CPU": 1}] * 3)
except ClusterError as error:
    print("error", error)
me, seen, until = psutil.Process(), set(), time.monotonic() + 6
while time.monotonic() < until:  # some services start late
    for process in [me, *me.children(recursive=True)]:
        try:
            connections = process.net_connections("inet")
        except psutil.Error:
            continue
        seen |= {(c.laddr.ip, c.laddr.port, process.name()) for c in connections if c.status == "LISTEN"}
    time.sleep(1)
for address in sorted(seen):
    print("listens", *address)
lazy.leave()
"""


def test_the_loopback_switch_is_restored(monkeypatch):
    from ray._private import ray_constants

    for before in (None, "1"):
        if before is None:
            monkeypatch.delenv(session.MULTI_NODE_VARIABLE, raising=False)
        else:
            monkeypatch.setenv(session.MULTI_NODE_VARIABLE, before)
        enabled = ray_constants.ENABLE_RAY_CLUSTER
        with session._on_loopback():
            assert os.environ[session.MULTI_NODE_VARIABLE] == "0"
            assert not ray_constants.ENABLE_RAY_CLUSTER
        assert os.environ.get(session.MULTI_NODE_VARIABLE) == before
        assert enabled == ray_constants.ENABLE_RAY_CLUSTER


def test_a_stage_on_gpus_waits_until_the_stage_before_has_freed_the_cards(monkeypatch):
    card = CardMemory(0, "GPU-aa11", "RTX 4090", 24.0, 1.0)
    waited: list[object] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(session, "read_memory", lambda: [card])
    monkeypatch.setattr(session, "wait_for", lambda bundles, *_, **options: waited.append(options["remedy"]))
    monkeypatch.setattr(session, "wait_until_released", waited.append)
    ray = LazyRay(ClusterConfig(gpus=1))
    ray.joined = True
    ray.ensure()
    ray.ensure([{"CPU": 1.0}])
    ray.ensure([{"CPU": 1.0, "GPU": 0.5}])
    assert waited == [FIXED, FIXED, [card]]
    assert LazyRay(ClusterConfig(gpus=1, device="cpu")).cards == []
    assert LazyRay(ClusterConfig(gpus=1, address="head:6379")).cards == [], "they are on other machines"
