"""Every draw has a seed of its own, so results do not depend on actors, on block order or on restarts."""

import hashlib

import numpy as np


def draw_seed(seed: int, row_id: str, kind: str, index: int, attempt: int = 0) -> int:
    """A 63-bit seed for draw `index` of `kind` for one row, the `attempt`-th time. A row's id is the hash of its content."""
    again = f"\0{attempt}" if attempt else ""
    digest = hashlib.sha256(f"{seed}\0{row_id}\0{kind}\0{index}{again}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, row_id: str, kind: str, index: int, attempt: int = 0) -> np.random.Generator:
    """The random numbers of one draw."""
    return np.random.Generator(np.random.PCG64(draw_seed(seed, row_id, kind, index, attempt)))
