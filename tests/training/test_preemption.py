"""A preempted machine: training saves a checkpoint before it goes away, and resumes elsewhere."""

import contextlib
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import ray.train

from cpo_ray.training.preemption import POLL_EVERY_S, PreemptionWatch
from tests.ray_nodes import RAY, ROOT, head, node

STEPS = 30
FIRST_IP, SECOND_IP = "127.0.0.3", "127.0.0.4"


def test_each_machine_is_counted_once(monkeypatch):
    answers = [None, SimpleNamespace(preempted_node_ids=["a"]), SimpleNamespace(preempted_node_ids=["a", "b", "c"])]
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: answers[0])
    watch = PreemptionWatch()
    counts = []
    while answers:
        counts += [watch.count_new(), watch.count_new()]
        del answers[0]
    assert counts == [0, 0, 1, 0, 2, 0]


def test_it_is_not_due_at_every_step(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch = PreemptionWatch()
    due = []
    for now[0] in (0.1, 0.2, POLL_EVERY_S, POLL_EVERY_S + 0.2, 9.0):
        due.append(watch.is_due())
    assert due == [True, False, False, True, True]


@pytest.mark.parametrize("lost", [False, pytest.param(True, marks=pytest.mark.chaos)])
@pytest.mark.e2e
def test_a_spot_notice_costs_only_the_steps_after_it(world, lost):
    """Without the notice there would be no checkpoint, and losing the machine would repeat every step."""
    folder = Path(tempfile.mkdtemp(prefix="spot"))
    with head(folder, "--num-cpus=0") as nodes, contextlib.ExitStack() as machines:

        def join(name, ip):
            place = [f"--address={nodes.gcs}", f"--node-ip-address={ip}", f"--temp-dir={folder / name}", "--num-cpus=2"]
            return machines.enter_context(node(folder / f"{name}.log", nodes.environment, *place))

        first = join("a", FIRST_IP)
        driver = machines.enter_context(running_driver(world, folder, nodes))
        driver.read_until("'step': 4,")
        drain(nodes, FIRST_IP)
        notice = driver.read_until("of the workers' machines will be preempted soon")
        if lost:
            join("b", SECOND_IP)
            kill(first)
        driver.read_to_the_end()
    saved = int(
        re.fullmatch(
            r"1 of the workers' machines will be preempted soon: saved at step (\d+), training continues\n", notice
        )[1]
    )
    again = [line for line in driver.lines if "workers were lost" in line]
    assert again == ([f"workers were lost: resuming from step {saved}\n"] if lost else [])
    steps = driver.steps()
    assert set(steps) == set(range(1, STEPS + 1))
    assert [steps.count(step) for step in range(1, saved + 1)] == [1] * saved
    assert saved < STEPS
    kept = [json.loads(file.read_text()) for file in (folder / "checkpoints").glob("checkpoint_*/cursor.json")]
    assert {entry["finished"] for entry in kept} == {saved, STEPS}


class Driver:
    """A training in a process of its own, whose output is read line by line."""

    def __init__(self, process):
        self.process, self.lines = process, []

    def read_until(self, words):
        """The next line that contains these words."""
        for line in self.process.stdout:
            self.lines.append(line)
            if words in line:
                return line
        raise AssertionError(f"no {words!r} in:\n{''.join(self.lines)}")

    def read_to_the_end(self):
        self.lines += self.process.stdout
        assert self.process.wait() == 0, "".join(self.lines)

    def steps(self):
        """The numbers of the steps that it printed, in order."""
        return [int(re.search(r"'step': (\d+)", line)[1]) for line in self.lines if "'loss'" in line]


@contextlib.contextmanager
def running_driver(world, folder, nodes):
    """A training of half a second per step, without a checkpoint before the last step."""
    settings = {"steps": STEPS, "checkpoint_every": STEPS}
    command = [sys.executable, "-m", "tests.training.driver", world, folder, "[]", "0.5", json.dumps(settings)]
    environment = nodes.environment | {"RAY_ADDRESS": nodes.gcs, "PYTHONUNBUFFERED": "1"}
    environment["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"] = "1"
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    timeout = threading.Timer(400, process.kill)  # a training that waits forever must not hang the tests
    timeout.start()
    try:
        yield Driver(process)
    finally:
        timeout.cancel()
        process.kill()
        process.wait()


def drain(nodes, ip):
    """Drain a node with `ray drain-node`, as after a spot notice."""
    code = "import ray, sys; ray.init(); print(*[n['NodeID'] for n in ray.nodes() if n['NodeManagerAddress'] == sys.argv[1]])"
    environment = nodes.environment | {"RAY_ADDRESS": nodes.gcs}
    asked = subprocess.run(
        [sys.executable, "-c", code, ip], env=environment, capture_output=True, text=True, check=True
    )
    why = ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot", "--deadline-remaining-seconds=30"]
    command = [RAY, "drain-node", f"--address={nodes.gcs}", f"--node-id={asked.stdout.split()[-1]}", *why]
    subprocess.run(command, env=environment, check=True)


def kill(machine):
    """Kill all its processes at once."""
    for process in [*psutil.Process(machine.pid).children(recursive=True), machine]:
        process.kill()
