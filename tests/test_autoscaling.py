"""cluster.yaml with Ray's real autoscaler and a fake provider that starts real Ray nodes on this machine."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config

from tests.ray_nodes import head

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parent.parent
HEAD_ID = "f" * 51 + "00000"

# What a stage does in a job: wait for two machines that do not run yet; then wait until they are gone again.
STAGE = """
import sys, time, ray
from cpo_ray.cluster import session, waiting
from cpo_ray.config import ClusterConfig
from cpo_ray.errors import ClusterError

def machines():
    return sum(node["Alive"] for node in ray.nodes())

waiting.NOTICE_PERIOD_S = 2
lazy = session.LazyRay(ClusterConfig(address=sys.argv[1], wait_s=90))
lazy.ensure()
print("before", machines(), flush=True)
lazy.ensure([{"CPU": 1, "GPU": 1}] * 16)
print("ready", machines(), flush=True)
try:
    waiting.wait_for([{"GPU": 1}] * 17, 3)
except ClusterError as error:
    print("error", error, flush=True)
until = time.monotonic() + 90
while machines() > 1 and time.monotonic() < until:
    time.sleep(1)
print("after", machines(), flush=True)
lazy.leave()
"""


def test_machines_start_for_a_stage_and_stop_when_idle():
    folder = Path(tempfile.mkdtemp(prefix="fake"))
    try:
        description = prepare_config(
            yaml.safe_load((ROOT / "cluster.yaml").read_text())
        )  # what `ray up` gives the head
        types = description["available_node_types"]
        key = folder / "key.pem"
        key.write_text("private")  # the launcher reads it
        description |= {
            "provider": {"type": "fake_multinode", "head_node_id": HEAD_ID, "gcs_address": "GCS"},
            "head_node_type": "ray.head.default",
            "available_node_types": {"ray.head.default": types["head"], "a100": types["a100"]},
            "idle_timeout_minutes": 0.2,
            "auth": {"ssh_user": "ubuntu", "ssh_private_key": str(key)},
        }
        output = scale(folder, description)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert "before 1" in output
    assert "waiting needed: 16 GPU + 16 CPU, total: 0 GPU" in output
    assert "ready 3" in output
    assert "error needed: 17 GPU, total: " in output  # at most two machines
    assert "after 1" in output


def scale(folder, description):
    file = folder / "cluster.yaml"
    fake = {"RAY_FAKE_CLUSTER": "1", "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID}
    with head(folder, "--num-cpus=8", f"--autoscaling-config={file}", before=write(file, description), **fake) as nodes:
        seen = subprocess.run(
            [sys.executable, "-c", STAGE, nodes.gcs],
            env=nodes.environment | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    assert seen.returncode == 0, seen.stdout + seen.stderr
    return seen.stdout


def write(file, description):
    """A callback for `head(before=...)` that writes the address into the file."""

    def fill(gcs):
        description["provider"]["gcs_address"] = gcs
        file.write_text(yaml.safe_dump(description))

    return fill
