"""Ray clusters of several nodes on this machine, each with its own token, ports and folder."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
RAY = Path(sys.executable).with_name("ray")
HEAD_IP, WORKER_IP = "127.0.0.2", "127.0.0.3"  # Ray replaces 127.0.0.1 by the machine's external address
START_TIMEOUT_S = 90


@dataclass(frozen=True)
class Nodes:
    """A running cluster: its addresses, and environments for its clients."""

    dashboard: str
    gcs: str
    environment: dict  # of a client with the token
    stranger: dict  # of a client without it


@contextlib.contextmanager
def head(folder, *options, before=lambda gcs: None, **environment):
    """Start a head. `environment` is only for its processes. `folder` must be short: Ray's sockets are in it.

    `before` is called with the address before the head starts.
    """
    token = folder / "home" / ".ray" / "auth_token"
    token.parent.mkdir(parents=True)
    token.write_text("f" * 64)
    stranger = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "CPO_RAY_"))}
    stranger |= {"HOME": str(folder / "home"), "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}"}
    stranger["TORCH_EXTENSIONS_DIR"] = str(Path.home() / ".cache" / "torch_extensions")  # built once, not once per HOME
    client = stranger | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    gcs, dashboard = free_port(), free_port()
    ports = [f"--port={gcs}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
    place = [f"--node-ip-address={HEAD_IP}", f"--temp-dir={folder}", "--include-dashboard=true"]
    environment |= {name: str(free_port()) for name in ("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT")}
    before(f"{HEAD_IP}:{gcs}")
    with node(folder / "head.log", client | environment, "--head", *ports, *place, *options) as process:
        wait_until_open(dashboard, process)
        yield Nodes(f"http://127.0.0.1:{dashboard}", f"{HEAD_IP}:{gcs}", client, stranger)


@contextlib.contextmanager
def two_nodes(folder, **environment):
    """A head and a worker node. `environment` is only for Ray's processes on the head."""
    with head(folder, "--num-cpus=2", **environment) as nodes:
        # Its own folder, because each node unpacks a job's files and would delete the other's.
        apart = f"--temp-dir={folder / 'w'}"
        place = [f"--address={nodes.gcs}", f"--node-ip-address={WORKER_IP}", "--num-cpus=2", apart]
        with node(folder / "worker.log", nodes.environment, *place):
            yield nodes


@contextlib.contextmanager
def node(log, environment, *options):
    """`ray start` in the foreground. At the end SIGTERM, then SIGKILL to all remaining child processes."""
    own = [f"--dashboard-agent-listen-port={free_port()}", "--object-store-memory=80000000", "--disable-usage-stats"]
    command = [RAY, "start", *options, *own, "--block"]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    try:
        yield process
    finally:
        started = []
        with contextlib.suppress(psutil.NoSuchProcess):
            started = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=15)
        for child in [*started, process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.wait()


def wait_until_open(port, process):
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise AssertionError("the head did not start")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
