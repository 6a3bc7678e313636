import subprocess
import sys

import pytest

from cpo_ray.cluster.cards import (
    CardMemory,
    Holder,
    count_local,
    local_cards,
    parse_holders,
    parse_memory,
    read_memory,
    visible,
    wait_until_released,
)
from cpo_ray.errors import ClusterError

REPORT = """\
0, GPU-aa11, NVIDIA GeForce RTX 4090, 24576, 1024
1, GPU-bb22, NVIDIA GeForce RTX 4090, 24576, 0
2, GPU-cc33, NVIDIA GeForce RTX 4090, [Unknown Error], [Unknown Error]
"""
FIRST = CardMemory(0, "GPU-aa11", "NVIDIA GeForce RTX 4090", 24.0, 1.0)


def test_the_driver_s_report_is_read_without_cards_in_error():
    cards = parse_memory(REPORT)
    assert [card.index for card in cards] == [0, 1]
    assert cards[0] == FIRST
    holders = parse_holders("GPU-aa11, 4711, VLLM::EngineCore, 13312\nGPU-bb22, 12, a, b, [N/A]\n")
    assert holders == [
        Holder("GPU-aa11", "4711", "VLLM::EngineCore", "13.0 GiB"),
        Holder("GPU-bb22", "12", "a, b", "[N/A]"),
    ]


@pytest.mark.parametrize(
    ("chosen", "expected"), [(None, [0, 1]), ("1", [1]), ("GPU-aa", [0]), ("", []), ("1,0", [0, 1]), ("7", [])]
)
def test_only_the_cards_that_the_process_sees_count(chosen, expected):
    environment = {} if chosen is None else {"CUDA_VISIBLE_DEVICES": chosen}
    assert [card.index for card in visible(parse_memory(REPORT), environment)] == expected


def reports(*used):
    """What the driver says of the first card at each call; the last for ever."""
    left = list(used)

    def read():
        amount = left.pop(0) if len(left) > 1 else left[0]
        return [CardMemory(FIRST.index, FIRST.uuid, FIRST.name, FIRST.total_gib, amount)]

    return read


def test_the_next_stage_waits_until_the_memory_is_free(monkeypatch):
    monkeypatch.setattr("cpo_ray.cluster.cards.POLL_S", 0)
    read = reports(14.0, 14.0, 1.5)
    wait_until_released([FIRST], 60, read, lambda: pytest.fail("asked who holds it"))
    assert read()[0].used_gib == 1.5, "it asked until the memory was free"
    wait_until_released([], 60, list, list)


def test_a_process_that_keeps_memory_is_named():
    engine = Holder("GPU-aa11", "4711", "VLLM::EngineCore", "13.0 GiB")
    other = Holder("GPU-bb22", "12", "python", "1.0 GiB")
    with pytest.raises(ClusterError) as error:
        wait_until_released([FIRST], 0, reports(14.0), lambda: [engine, other])
    assert str(error.value) == (
        "GPU 0 (NVIDIA GeForce RTX 4090) has 14.0 of 24.0 GiB in use, where at most 2.0 were expected, although the stages "
        "before have ended. It is held by process 4711 (VLLM::EngineCore) 13.0 GiB. End it, then run the same command again"
    )


def test_a_cpu_build_of_torch_has_no_cards(monkeypatch):
    monkeypatch.setattr("cpo_ray.cluster.cards.version", lambda _: "2.13.0+cpu")
    assert count_local() == 0
    assert str(local_cards()) == "0 x GPU"


def test_a_smaller_or_busier_card_decides(monkeypatch):
    monkeypatch.setattr("cpo_ray.cluster.cards.count_local", lambda: 2)
    monkeypatch.setattr("cpo_ray.cluster.cards.read_memory", lambda: parse_memory(REPORT))
    assert str(local_cards()) == "2 x NVIDIA GeForce RTX 4090, 24.0 GiB each, of which other programs use 1.0"


HOLD = "import sys, torch; held = torch.ones(2**29, device='cuda'); print('ready', flush=True); sys.stdin.read()"


@pytest.mark.gpu
def test_the_memory_of_another_process_is_seen_until_it_ends(monkeypatch):
    """2 GiB, beside this process's own context if there is one."""
    monkeypatch.setattr("cpo_ray.cluster.cards.POLL_S", 0.1)
    before = read_memory()
    assert len(before) == count_local() > 0
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "ready\n"
        with pytest.raises(ClusterError, match="GiB in use, where at most"):
            wait_until_released(before, 0)
        holder.communicate("")
    wait_until_released(before)
