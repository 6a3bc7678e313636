"""cluster.yaml under Ray's own autoscaler: only the provider is replaced, by one that starts real Ray nodes here."""

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

# A stage as a job would begin it, on two machines that are not there yet; then the time until they are gone again.
STAGE = """
import sys, time, ray
from cpo_ray.cluster import session
from cpo_ray.config import ClusterConfig
from cpo_ray.errors import ClusterError

def machines():
    return sum(node["Alive"] for node in ray.nodes())

session.REMIND_S = 2
lazy = session.LazyRay(ClusterConfig(address=sys.argv[1], wait_s=90))
lazy.ensure()
print("before", machines(), flush=True)
lazy.ensure([{"CPU": 1, "GPU": 1}] * 16)
print("with what it needs", machines(), flush=True)
try:
    session.wait_for([{"GPU": 1}] * 17, 3)
except ClusterError as error:
    print("error", error, flush=True)
until = time.monotonic() + 90
while machines() > 1 and time.monotonic() < until:
    time.sleep(1)
print("after", machines(), flush=True)
lazy.leave()
"""


def test_machines_come_when_a_stage_needs_them_and_go_when_it_does_not():
    folder = Path(tempfile.mkdtemp(prefix="fake"))
    try:
        description = prepare_config(
            yaml.safe_load((ROOT / "cluster.yaml").read_text())
        )  # what `ray up` gives the head
        types = description["available_node_types"]
        key = folder / "key.pem"
        key.write_text("private")  # a launch reads it
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
    assert "waiting needed: 16 GPU + 16 CPU, there: 0 GPU" in output
    assert "with what it needs 3" in output
    assert "error needed: 17 GPU, there: " in output  # two machines at the most
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
    """What `head` calls once it knows its address."""

    def fill(gcs):
        description["provider"]["gcs_address"] = gcs
        file.write_text(yaml.safe_dump(description))

    return fill
