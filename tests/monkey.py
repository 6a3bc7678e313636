"""A cluster's worker nodes, and a monkey among them that kills a node or a process at random, by SIGKILL, and keeps a diary."""

import contextlib
import random
import threading
import time

import psutil

from tests.ray_nodes import node

# What a process's title begins with -> what it is.
KINDS = {
    "ray::RayTrainWorker": "training worker",
    "ray::MapWorker": "sampling actor",
    "ray::ServeReplica": "replica",
    "VLLM::": "engine process",
}


class Herd:
    """Worker nodes that join a head. Each has an address, a folder for temporary files and a log of its own."""

    def __init__(self, folder, nodes, *options):
        self.folder, self.nodes, self.options = folder, nodes, options
        self.members, self.joined = [], 0  # (ray start's process, what ends it)

    def join(self):
        self.joined += 1
        name = f"w{self.joined}"  # short: sockets lie in it
        scratch = self.folder / name
        scratch.mkdir()
        place = [f"--address={self.nodes.gcs}", f"--node-ip-address=127.0.1.{self.joined}", f"--temp-dir={scratch}"]
        stack = contextlib.ExitStack()
        environment = self.nodes.environment | {"TMPDIR": str(scratch)}
        process = stack.enter_context(node(self.folder / f"{name}.log", environment, *place, *self.options))
        self.members.append((process, stack))

    def lose(self, member):
        """A machine that is switched off."""
        process, stack = member
        for each in [*family(process), psutil.Process(process.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        self.members.remove(member)
        stack.close()

    def end(self):
        for _, stack in self.members:
            stack.close()


class Monkey:
    """Strikes every `period` seconds while its block lasts. The head is left alone: nobody else knows what the cluster is."""

    def __init__(self, herd, seed, period):
        self.herd, self.period, self.random = herd, period, random.Random(seed)
        self.diary, self.over = [], threading.Event()
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
            self.strike()

    def strike(self):
        there = {}
        for process, _ in self.herd.members:
            for each in family(process):
                with contextlib.suppress(psutil.Error):
                    title = " ".join(each.cmdline())
                    kind = next((KINDS[start] for start in KINDS if title.startswith(start)), None)
                    if kind is not None:
                        there.setdefault(kind, []).append((each.pid, title, each))
        what = self.random.choice(["node", *sorted(there)])
        if what == "node":
            member = self.random.choice(self.herd.members)
            self._note(what, next(word for word in member[0].args if str(word).startswith("--node-ip-address")))
            self.herd.lose(member)
            self.herd.join()
            return
        _, title, victim = self.random.choice(sorted(there[what], key=lambda entry: entry[:2]))
        self._note(what, title)
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()

    def _note(self, what, name):
        entry = {"at_s": round(time.monotonic() - self.started, 1), "killed": what, "name": name[:80]}
        self.diary.append(entry)
        print(entry, flush=True)


def family(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children(recursive=True)
    return []
