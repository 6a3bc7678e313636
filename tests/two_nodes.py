"""A Ray cluster of two real nodes on this machine, with a token, ports and a folder of its own."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

RAY = Path(sys.executable).with_name("ray")
HEAD_IP, WORKER_IP = "127.0.0.1", "127.0.0.2"
STARTED_S = 60


@dataclass(frozen=True)
class TwoNodes:
    dashboard: str
    gcs: str
    environment: dict  # of a client that has the token
    stranger: dict  # of one that has not


@contextlib.contextmanager
def two_nodes(folder, **head_environment):
    """Start a head and a worker node; `head_environment` is for Ray's processes on the head alone. `folder` must be short."""
    (folder / "home").mkdir()
    token = folder / "token"
    token.write_text("f" * 64)
    stranger = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "CPO_RAY_"))}
    stranger |= {"HOME": str(folder / "home"), "RAY_USAGE_STATS_ENABLED": "0"}
    client = stranger | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    gcs, dashboard = free_port(), free_port()
    common = ["--block", "--object-store-memory=80000000", "--disable-usage-stats"]
    head = ["--head", f"--port={gcs}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
    head += [f"--node-ip-address={HEAD_IP}", "--num-cpus=2", f"--temp-dir={folder}", "--include-dashboard=true"]
    worker = [
        f"--address={HEAD_IP}:{gcs}",
        f"--node-ip-address={WORKER_IP}",
        "--num-cpus=2",
        '--resources={"second": 1}',
    ]
    processes = []
    try:
        for arguments, environment in ((head, client | head_environment), (worker, client)):
            with (folder / f"node{len(processes)}.log").open("w") as log:
                command = [RAY, "start", *arguments, *common]
                processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            if arguments is head:
                wait_until_open(dashboard, processes[0])
        yield TwoNodes(f"http://127.0.0.1:{dashboard}", f"{HEAD_IP}:{gcs}", client, stranger)
    finally:
        end(processes)


def end(processes):
    """SIGTERM, and SIGKILL for what is left: the nodes' processes and all that they started."""
    everything = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            everything += [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for process in processes:
        process.terminate()
    _, alive = psutil.wait_procs(everything, timeout=15)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def wait_until_open(port, process):
    until = time.monotonic() + STARTED_S
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
