"""Memory and dense peak FLOP/s of accelerators, from the vendors' data sheets, and the fraction of the peak that is reached."""

import os
from dataclasses import dataclass

UTILIZATION = {"training": 0.35, "scoring": 0.45, "generation": 0.05}
"""Fraction of peak FLOP/s per kind of work. Generation reads all weights for every token, so memory bandwidth bounds it."""


@dataclass(frozen=True)
class Device:
    """One accelerator. TFLOP/s are dense peaks, fp32 without TF32. `network_gbit` is per node, over all its network cards."""

    name: str
    memory_gib: float
    bf16_tflops: float
    fp32_tflops: float
    per_node: int
    network_gbit: float = 10.0

    def flops(self, precision: str) -> float:
        """Peak FLOP/s in `bf16` or `fp32`."""
        return 1e12 * (self.bf16_tflops if precision == "bf16" else self.fp32_tflops)


DEVICES = {
    "a100-40": Device("A100 40 GB", 40, 312, 19.5, 8, 400),
    "a100-80": Device("A100 80 GB", 80, 312, 19.5, 8, 400),
    "h100": Device("H100 SXM", 80, 989, 67, 8, 3200),
}


def peak_flops(precision: str) -> float | None:
    """Peak FLOP/s of this process's GPU, None if it is not in DEVICES."""
    import torch

    name = torch.cuda.get_device_name().lower()
    found = next((device for key, device in DEVICES.items() if key.split("-")[0] in name), None)
    return found.flops(precision) if found else None


def find_device(name: str) -> Device:
    """Look up a device by name; `cpu` is one core of this machine with its share of the memory."""
    if name != "cpu":
        return DEVICES[name]
    cores = os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Device("CPU core", memory / cores, 0.05, 0.05, cores)
