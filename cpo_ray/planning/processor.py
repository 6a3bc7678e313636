"""The speed of this machine's CPU cores, measured by a product of matrices."""

import os
import time

from cpo_ray.cluster.accelerators import Device

ROWS = 512  # tokens of a product: as many as a small microbatch has
SECONDS = 0.2


def measure_cores(width: int) -> Device:
    """One core of this machine with its share of the memory. Its FLOP/s are those of a product of the model's width.

    Takes 0.4 s. Processor time is measured, so other processes on this machine hardly change the result.
    """
    cores = os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    speeds = {precision: _tflops(width, precision) for precision in ("bf16", "fp32")}
    return Device("CPU core", memory / cores, speeds["bf16"], speeds["fp32"], cores, cores=True)


def _tflops(width: int, precision: str) -> float:
    """TFLOP/s of (ROWS, width) @ (width, 3 * width) on one thread."""
    import torch

    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    left, right = torch.ones(ROWS, width, dtype=dtype), torch.ones(width, 3 * width, dtype=dtype)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.mm(left, right)  # the first product chooses a kernel
        started, products = time.process_time(), 0
        while (spent := time.process_time() - started) < SECONDS:
            torch.mm(left, right)
            products += 1
    finally:
        torch.set_num_threads(threads)
    return products * 2 * ROWS * width * 3 * width / spent / 1e12
