import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
from ray.exceptions import AuthenticationError

from cpo_ray.cluster import session
from cpo_ray.cluster.resources import sampling_needs, serving_needs, streaming_needs, training_needs
from cpo_ray.cluster.session import LazyRay, describe_lack, wait_for
from cpo_ray.config import ClusterConfig
from cpo_ray.config.loading import parse_config
from cpo_ray.errors import ClusterError


def config(**sections):
    return parse_config({"name": "x", **sections}, "test")


def test_what_stages_need_without_gpus():
    run = config(training={"workers": 2})
    assert training_needs(run.training, run.cluster) == [{"CPU": 1}, {"CPU": 1}]
    assert sampling_needs(run) == serving_needs(run, 3) == []


def test_what_stages_need_with_gpus():
    run = config(
        cluster={"gpus_per_worker": 1},
        sampling={"negatives": {"autoregressive": 4}, "engine": {"tensor_parallel": 2}},
        serving={"engine": {"tensor_parallel": 4}},
    )
    assert training_needs(run.training, run.cluster) == [{"CPU": 1, "GPU": 1}] * 2
    assert sampling_needs(run) == [{"GPU": 1}, {"GPU": 1}, {"GPU": 2}]
    assert serving_needs(run, 2) == [{"GPU": 1}] * 8
    several = config(cluster={"gpus_per_worker": 1}, serving={"min_replicas": 2, "max_replicas": 3})
    assert serving_needs(several, 5) == [{"GPU": 1}] * 10
    shared = config(cluster={"gpus_per_worker": 1}, serving={"in_place": True, "min_replicas": 2, "max_replicas": 3})
    assert serving_needs(shared, 5) == [{"GPU": 1}] * 2, "one engine takes all models in turn"
    assert sampling_needs(config(cluster={"gpus_per_worker": 1})) == [{"GPU": 1}, {"GPU": 1}]


def test_what_is_streamed_needs_trainers_actors_and_tasks_at_once():
    """A task that waits for a policy must not take the place of one that hands on what training waits for."""
    tasks = [{"CPU": 0.5}] * 3
    mixed = config(sampling={"stream": True}, training={"workers": 2})
    assert streaming_needs(mixed) == [{"CPU": 1}] * 2 + [{"CPU": 0.5}] * 2 + tasks
    online = {"stream": True, "negatives": {"autoregressive": 4}}
    assert len(streaming_needs(config(sampling=online, training={"workers": 2}))) == 2 + 3 + 3
    on_gpus = config(cluster={"gpus_per_worker": 1}, sampling=online, training={"workers": 2})
    actors = [{"GPU": 1}, {"GPU": 1}, {"GPU": 1}]
    assert streaming_needs(on_gpus) == [{"CPU": 1, "GPU": 1}] * 2 + actors + tasks


def test_what_is_lacking_is_said_in_one_line():
    needs = [{"CPU": 1, "GPU": 1}] * 16
    line = describe_lack(needs, {"CPU": 104, "GPU": 8, "memory": 1}, {"CPU": 104})
    assert line == (
        "needed: 16 GPU + 16 CPU, there: 8 GPU + 104 CPU, free: 0 GPU + 104 CPU "
        "(in 16 bundles, the largest 1 GPU + 1 CPU on one node)"
    )


@pytest.fixture
def asked_of_ray(monkeypatch):
    """The addresses that Ray would have been asked to join, and what it answers."""
    import ray

    asked = SimpleNamespace(addresses=[], answer=None)

    def init(address, **_):
        asked.addresses.append(address)
        if asked.answer is not None:
            raise asked.answer

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return asked


@pytest.mark.parametrize("address", ["foo", "foo:", ":6379", "10.0.0.1:gcs", "10.0.0.1:66000"])
def test_an_address_that_is_none_is_refused(asked_of_ray, address):
    with pytest.raises(ClusterError, match=r"cluster\.address or RAY_ADDRESS is .* give host:port"):
        LazyRay(ClusterConfig(address=address)).ensure()
    assert asked_of_ray.addresses == []


def test_where_nobody_listens_ray_is_not_asked(asked_of_ray):
    """It would ask for nine minutes."""
    with socket.socket() as listening:
        listening.bind(("", 0))  # at the address too that Ray takes for localhost
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(ClusterError, match=r"no Ray cluster at \S+: .*refused.*port 6379"):
            LazyRay(ClusterConfig(address=address)).ensure()
        assert asked_of_ray.addresses == []
        listening.listen()
        LazyRay(ClusterConfig(address=address)).ensure()
    assert asked_of_ray.addresses == [address]


@pytest.mark.parametrize("address", ["auto", "local", "ray://nowhere.invalid:10001"])
def test_what_ray_finds_by_itself_is_left_to_it(asked_of_ray, address):
    LazyRay(ClusterConfig(address=address)).ensure()
    assert asked_of_ray.addresses == [address]


@pytest.mark.parametrize("answer", [AuthenticationError("Token missing"), ConnectionError("Failed to connect")])
def test_a_token_that_ray_does_not_take_is_told(asked_of_ray, answer):
    asked_of_ray.answer = answer
    with pytest.raises(ClusterError, match=r"(Token missing|Failed to connect).*RAY_AUTH_TOKEN_PATH"):
        LazyRay(ClusterConfig(address="auto")).ensure()


@pytest.mark.e2e
def test_the_cluster_of_a_local_run_waits_within_bounds_and_listens_on_loopback_alone():
    """One cluster for both, in a process of its own: its sockets are those of all its children."""
    seen = subprocess.run([sys.executable, "-c", LOCAL_RUN], capture_output=True, text=True, timeout=120, check=False)
    assert seen.returncode == 0, seen.stderr
    lines = seen.stdout.splitlines()
    listening = [line.split()[1] for line in lines if line.startswith("listens")]
    assert len(listening) >= 6  # gcs, raylet, agents, workers, this driver
    assert {address.removeprefix("::ffff:") for address in listening} <= {"127.0.0.1", "::1"}
    assert any("had" in line for line in lines)
    (error,) = [line for line in lines if line.startswith("error")]
    assert "needed: 3 CPU, there: 2 CPU, free: 2 CPU" in error
    assert "cluster.wait_s" in error


LOCAL_RUN = """
import time, psutil
from cpo_ray.cluster.session import LazyRay
from cpo_ray.config import ClusterConfig
from cpo_ray.errors import ClusterError

lazy = LazyRay(ClusterConfig(local_cpus=2, object_store_gib=0.1, wait_s=3))
lazy.ensure([{"CPU": 1}, {"CPU": 1}])
print("had what it needed")
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


def test_what_was_set_for_loopback_is_put_back(monkeypatch):
    from ray._private import ray_constants

    for before in (None, "1"):
        if before is None:
            monkeypatch.delenv(session.NO_CLUSTER, raising=False)
        else:
            monkeypatch.setenv(session.NO_CLUSTER, before)
        enabled = ray_constants.ENABLE_RAY_CLUSTER
        with session._on_loopback():
            assert os.environ[session.NO_CLUSTER] == "0"
            assert not ray_constants.ENABLE_RAY_CLUSTER
        assert os.environ.get(session.NO_CLUSTER) == before
        assert enabled == ray_constants.ENABLE_RAY_CLUSTER


class FakeGroup:
    """A placement group that becomes ready at the given call, or never."""

    def __init__(self, ready_at):
        self.ready_at, self.asked = ready_at, 0

    def wait(self, timeout):
        self.asked += 1
        return self.asked == self.ready_at


@pytest.fixture
def asked(monkeypatch):
    """Ray, as far as `wait_for` sees it: one node of eight GPUs of two, and a clock that ticks a second a look."""
    import ray
    import ray.util

    group, removed, now = FakeGroup(3), [], [0.0]
    monkeypatch.setattr(ray.util, "placement_group", lambda bundles, strategy: group)
    monkeypatch.setattr(ray.util, "remove_placement_group", removed.append)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": 8.0, "CPU": 96.0})
    monkeypatch.setattr(ray, "available_resources", lambda: {"GPU": 8.0, "CPU": 95.0})

    def tick():
        now[0] += 1
        return now[0]

    monkeypatch.setattr(session.time, "monotonic", tick)
    return group, removed


def test_a_late_machine_is_waited_for_and_talked_about(asked):
    group, removed = asked
    group.ready_at, told = 121, []  # after two minutes
    wait_for([{"CPU": 1, "GPU": 1}] * 16, 1800, told.append)
    assert len(told) == 4  # every half minute, not at every look
    assert "needed: 16 GPU + 16 CPU, there: 8 GPU + 96 CPU, free: 8 GPU + 95 CPU" in told[0]
    assert "1800 s at most" in told[0]
    assert removed == [group]


def test_a_machine_that_never_comes_is_an_error_that_says_what_to_do(asked):
    group, removed = asked
    group.ready_at = None
    with pytest.raises(ClusterError, match=r"there: 8 GPU \+ 96 CPU.*cluster\.wait_s.*quota"):
        wait_for([{"CPU": 1, "GPU": 1}] * 16, 100, lambda _: None)
    assert removed == [group]
