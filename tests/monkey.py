"""A cluster's worker nodes, and a chaos monkey that kills a random node or process with SIGKILL and logs it."""

import contextlib
import random
import threading
import time

import psutil

from tests.ray_nodes import node

# Prefix of a process's title -> its kind.
KINDS = {
    "ray::RayTrainWorker": "training worker",
    "ray::MapWorker": "sampling actor",
    "ray::ServeReplica": "replica",
    "VLLM::": "engine process",
}


class WorkerNodes:
    """Worker nodes that join a head. Each has its own address, folder for temporary files, and log."""

    def __init__(self, folder, nodes, *options):
        self.folder, self.nodes, self.options = folder, nodes, options
        self.members, self.joined = [], 0  # (ray start's process, exit stack that stops it)

    def add(self):
        self.joined += 1
        name = f"w{self.joined}"  # short, because Ray's sockets are in it
        scratch = self.folder / name
        scratch.mkdir()
        place = [f"--address={self.nodes.gcs}", f"--node-ip-address=127.0.1.{self.joined}", f"--temp-dir={scratch}"]
        stack = contextlib.ExitStack()
        environment = self.nodes.environment | {"TMPDIR": str(scratch)}
        process = stack.enter_context(node(self.folder / f"{name}.log", environment, *place, *self.options))
        self.members.append((process, stack))

    def kill(self, member):
        """Kill all processes of a node, as if the machine was switched off."""
        process, stack = member
        for each in [*family(process), psutil.Process(process.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        self.members.remove(member)
        stack.close()

    def stop(self):
        for _, stack in self.members:
            stack.close()


class Monkey:
    """Kill something every `period` seconds until the block ends, except the head, which holds the cluster's state."""

    def __init__(self, workers, seed, period):
        self.workers, self.period, self.random = workers, period, random.Random(seed)
        self.kills, self.over = [], threading.Event()
        self.started = time.monotonic()
        self.thread = threading.Thread(target=self._run, name="monkey")

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()

    def _run(self):
        while not self.over.wait(self.period):
            self.kill_something()

    def kill_something(self):
        found = {}
        for process, _ in self.workers.members:
            for each in family(process):
                with contextlib.suppress(psutil.Error):
                    title = " ".join(each.cmdline())
                    kind = next((KINDS[start] for start in KINDS if title.startswith(start)), None)
                    if kind is not None:
                        found.setdefault(kind, []).append((each.pid, title, each))
        what = self.random.choice(["node", *sorted(found)])
        if what == "node":
            member = self.random.choice(self.workers.members)
            self._log(what, next(word for word in member[0].args if str(word).startswith("--node-ip-address")))
            self.workers.kill(member)
            self.workers.add()
            return
        _, title, victim = self.random.choice(sorted(found[what], key=lambda entry: entry[:2]))
        self._log(what, title)
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()

    def _log(self, what, name):
        entry = {"at_s": round(time.monotonic() - self.started, 1), "killed": what, "name": name[:80]}
        self.kills.append(entry)
        print(entry, flush=True)


def family(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children(recursive=True)
    return []
