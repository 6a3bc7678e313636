import torch

from cpo_ray.planning import processor
from cpo_ray.planning.processor import measure_cores


def test_the_cores_of_this_machine(monkeypatch):
    monkeypatch.setattr(processor, "SECONDS", 0.01)
    threads = torch.get_num_threads()
    core = measure_cores(64)
    assert core.cores
    assert core.per_node >= 1
    assert core.memory_gib > 0
    assert core.flops("fp32") > 0
    assert core.flops("bf16") > 0
    assert torch.get_num_threads() == threads
