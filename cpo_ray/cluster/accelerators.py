"""Memory and dense peak FLOP/s of accelerators, from the vendors' data sheets, and the fraction of the peak that is reached."""

import re
from dataclasses import dataclass

UTILIZATION = {"training": 0.35, "scoring": 0.45, "generation": 0.05}
"""Fraction of peak FLOP/s per kind of work. Generation reads all weights for every token, so memory bandwidth bounds it."""


@dataclass(frozen=True)
class Device:
    """One accelerator. TFLOP/s are dense peaks, fp32 without TF32. `network_gbit` is per node, over all its network cards.

    product: a regular expression for the name that the driver reports. Other models of a family have other peaks.
    cores: whether this is a CPU core, whose TFLOP/s are measured (`planning/processor.py`).
    """

    name: str
    memory_gib: float
    bf16_tflops: float
    fp32_tflops: float
    per_node: int
    network_gbit: float = 10.0
    product: str = ""
    cores: bool = False

    def flops(self, precision: str) -> float:
        """Peak FLOP/s in `bf16` or `fp32`."""
        return 1e12 * (self.bf16_tflops if precision == "bf16" else self.fp32_tflops)


# FLOP/s: NVIDIA's data sheets of the A100, H100, H200, HGX B200 (4.5 PFLOP/s in bf16 with sparsity, half of it dense) and L40S,
# and its Ada whitepaper for the RTX 4090 (with float32 accumulation, which torch uses; with float16 it would be twice as much).
# Memory: what the driver reports, in GiB; the data sheets of the last four say 141, 180, 48 (less ECC) and 24 GB.
# Machines: AWS p4d, p4de, p5, p5en, p6-b200 and g6e with 8 GPUs; a workstation with four RTX 4090.
DEVICES = {
    "a100-40": Device("A100 40 GB", 40, 312, 19.5, 8, 400, r"\bA100\b"),
    "a100-80": Device("A100 80 GB", 80, 312, 19.5, 8, 400, r"\bA100\b"),
    "h100": Device("H100 SXM", 80, 989, 67, 8, 3200, r"\bH100\b(?!.*(PCIe|NVL))"),
    "h200": Device("H200 SXM", 140, 989, 67, 8, 3200, r"\bH200\b(?!.*NVL)"),
    "b200": Device("B200", 179, 2250, 75, 8, 3200, r"\bB200\b"),
    "l40s": Device("L40S", 45, 362, 91.6, 8, 400, r"\bL40S\b"),
    "rtx-4090": Device("RTX 4090", 24, 165.2, 82.6, 4, 10, r"\bRTX 4090\b(?! (D|Laptop))"),
}


def match_device(product: str) -> Device | None:
    """The device with this product name, e.g. `NVIDIA H100 80GB HBM3`; None if it is not in DEVICES.

    The A100 with 40 GB and with 80 GB have the same peaks, so the first is returned for both.
    """
    return next((device for device in DEVICES.values() if re.search(device.product, product, re.IGNORECASE)), None)


def peak_flops(precision: str) -> float | None:
    """Peak FLOP/s of this process's GPU, None if it is not in DEVICES."""
    import torch

    found = match_device(torch.cuda.get_device_name())
    return found.flops(precision) if found else None
