"""The GPUs that a run may use: their number, and their memory by the driver's own count.

No CUDA context is created here, because one would take some of the memory that is measured: torch counts devices through NVML,
and `nvidia-smi` reports memory.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from cpo_ray.errors import ClusterError

MIB = 1 / 1024  # GiB
QUERY_S = 30  # limit of one call of nvidia-smi
RELEASE_S = 60.0  # how long ended processes may take to free their memory
POLL_S = 1.0
KEPT_GIB = 1.0  # other programs, a desktop for instance, may use so much more than before


@dataclass(frozen=True)
class Cards:
    """GPUs for a run. memory_gib: of the smallest, None if unknown; used_gib: how much of that other programs use.

    local: of this machine, which gets no more of them, unlike a cluster.
    """

    count: int
    memory_gib: float | None = None
    used_gib: float = 0.0
    name: str = "GPU"
    local: bool = True

    def __str__(self) -> str:
        memory = "" if self.memory_gib is None else f", {self.memory_gib:.1f} GiB each"
        used = f", of which other programs use {self.used_gib:.1f}" if self.used_gib >= KEPT_GIB else ""
        return f"{self.count} x {self.name}{memory}{used}"


@dataclass(frozen=True)
class CardMemory:
    """What the driver reports of one card."""

    index: int
    uuid: str
    name: str
    total_gib: float
    used_gib: float


@dataclass(frozen=True)
class Holder:
    """A process that holds memory of a card."""

    uuid: str
    pid: str
    program: str
    used: str  # as reported: `[N/A]` inside some containers


def count_local() -> int:
    """GPUs of this machine that PyTorch can use: 0 with its CPU build, CUDA_VISIBLE_DEVICES applied."""
    if version("torch").endswith("+cpu"):  # without the import, which takes seconds
        return 0
    import torch

    return torch.cuda.device_count()


def local_cards() -> Cards:
    """This machine's GPUs."""
    count = count_local()
    found = read_memory() if count else []
    if not found:
        return Cards(count)
    smallest = min(found, key=lambda card: card.total_gib - card.used_gib)
    return Cards(count, smallest.total_gib, smallest.used_gib, smallest.name)


def read_memory() -> list[CardMemory]:
    """The cards that this process sees; none if the driver has no nvidia-smi."""
    return visible(parse_memory(_query("--query-gpu=index,uuid,name,memory.total,memory.used")), os.environ)


def read_holders() -> list[Holder]:
    """The processes that hold memory of any card."""
    return parse_holders(_query("--query-compute-apps=gpu_uuid,pid,process_name,used_memory"))


def parse_memory(text: str) -> list[CardMemory]:
    """Lines `index, uuid, name, total, used` in MiB. Lines without numbers (a card in error) are left out."""
    cards = []
    for line in text.splitlines():
        index, uuid, name, total, used = (cell.strip() for cell in line.split(","))
        if total.isdecimal() and used.isdecimal():
            cards.append(CardMemory(int(index), uuid, name, int(total) * MIB, int(used) * MIB))
    return cards


def parse_holders(text: str) -> list[Holder]:
    """Lines `uuid, pid, program, used` in MiB."""
    rows = ([cell.strip() for cell in line.split(",")] for line in text.splitlines())
    return [
        Holder(uuid, pid, ", ".join(program), f"{int(used) * MIB:.1f} GiB" if used.isdecimal() else used)
        for uuid, pid, *program, used in rows
    ]


def visible(cards: Sequence[CardMemory], environment: Mapping[str, str]) -> list[CardMemory]:
    """The cards that CUDA_VISIBLE_DEVICES names, by index or by the beginning of the UUID; all if it is not set."""
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return list(cards)
    names = [name.strip() for name in chosen.split(",") if name.strip()]
    return [
        card
        for card in cards
        if any(name == str(card.index) or (card.uuid.startswith(name) and "-" in name) for name in names)
    ]


def wait_until_released(
    before: Sequence[CardMemory],
    timeout_s: float = RELEASE_S,
    read: Callable[[], Sequence[CardMemory]] = read_memory,
    holders: Callable[[], Sequence[Holder]] = read_holders,
) -> None:
    """Wait until every card has about as much free memory as `before`. Raises ClusterError with the processes that hold it."""
    allowed = {card.uuid: card.used_gib + KEPT_GIB for card in before}
    deadline = time.monotonic() + timeout_s
    while full := [card for card in read() if card.used_gib > allowed.get(card.uuid, card.total_gib)]:
        if time.monotonic() >= deadline:
            raise ClusterError("; ".join(_describe(card, allowed[card.uuid], holders()) for card in full))
        time.sleep(POLL_S)


def _describe(card: CardMemory, allowed: float, holders: Sequence[Holder]) -> str:
    own = [f"process {each.pid} ({each.program}) {each.used}" for each in holders if each.uuid == card.uuid]
    held = f"It is held by {', '.join(own)}" if own else "The driver names no process that holds it"
    return (
        f"GPU {card.index} ({card.name}) has {card.used_gib:.1f} of {card.total_gib:.1f} GiB in use, where at most "
        f"{allowed:.1f} were expected, although the stages before have ended. {held}. End it, then run the same command again"
    )


def _query(what: str) -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    command = [program, what, "--format=csv,noheader,nounits"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_S, check=False)  # noqa: S603 - fixed
    return answer.stdout if answer.returncode == 0 else ""
