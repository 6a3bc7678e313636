"""slurm/cpo_ray.sbatch, with stand-ins for Slurm's commands: each "node" is an address of this machine's loopback."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ray_nodes import HEAD_IP, WORKER_IP, free_port

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "slurm" / "cpo_ray.sbatch"
SRUN = f"""#!{sys.executable}
import os, sys
node = next(word.partition("=")[2] for word in sys.argv if word.startswith("--nodelist="))
address = {{"node0": "{HEAD_IP}", "node1": "{WORKER_IP}"}}[node]
command = [word for word in sys.argv[1:] if not word.startswith("--nod") and word not in ("--ntasks=1", "--overlap")]
with open(os.environ["SRUN_LOG"], "a") as log:
    print(node, *command, file=log)
if command[0] == "hostname":
    print(address)
    sys.exit(0)
if command[1:2] == ["start"]:
    folder = os.path.join(os.environ["SRUN_FOLDER"], node)
    port = os.environ["AGENT_PORT_" + node]
    command += [f"--temp-dir={{folder}}", f"--dashboard-agent-listen-port={{port}}", "--num-cpus=2", "--disable-usage-stats"]
    command += ["--object-store-memory=80000000"] + ["--node-ip-address=" + address] * ("--head" not in command)
    command += [f"--dashboard-port={{os.environ['DASHBOARD_PORT']}}"] * ("--head" in command)
os.execv(command[0], command)
"""
SCONTROL = "#!/bin/sh\nprintf 'node0\\nnode1\\n'\n"


def test_the_script_is_sound_and_asks_for_what_it_uses():
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    text = SCRIPT.read_text()
    assert SCRIPT.stat().st_mode & 0o111
    assert re.findall(r"#SBATCH --(nodes|ntasks-per-node|signal)=(\S+)", text) == [
        ("nodes", "2"), ("ntasks-per-node", "1"), ("signal", "B:TERM@180"),
    ]  # fmt: skip
    assert not re.search(r"/(home|root|work|Users)/", text)


@pytest.mark.chaos
def test_a_run_on_two_nodes(tmp_path_factory, tmp_path):
    """Ray starts on both nodes, and the reference is trained with a worker on each."""
    folder = tmp_path_factory.mktemp("s")
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    run = tmp_path / "run"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "CPO_RAY_"))}
    ports = ("CPO_RAY_PORT", "DASHBOARD_PORT", "AGENT_PORT_node0", "AGENT_PORT_node1")
    environment |= {name: str(free_port()) for name in ports}
    environment |= {
        "SLURM_JOB_NODELIST": "node[0-1]",
        "SRUN_FOLDER": str(folder),
        "SRUN_LOG": str(tmp_path / "srun.log"),
    }
    environment |= {
        "PATH": f"{tmp_path}{os.pathsep}{environment['PATH']}",
        "CPO_RAY_BIN": str(Path(sys.executable).parent),
    }
    settings = ["reference.steps=2", "reference.workers=2", "cluster.placement=SPREAD", "cluster.threads_per_worker=1"]
    words = [word for setting in settings for word in ("--set", setting)]
    command = [SCRIPT, str(ROOT / "tests" / "tiny.yaml"), "--run-dir", str(run), "--until", "reference", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (run / "models" / "reference" / "model.safetensors").is_file()
    started = (tmp_path / "srun.log").read_text().splitlines()
    assert sum("ray start --head" in line and line.startswith("node0") for line in started) == 1
    assert sum("ray start --block --address" in line and line.startswith("node1") for line in started) == 1
