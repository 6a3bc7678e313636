"""Every draw has its own seed, so results do not depend on actors, block order or restarts."""

import hashlib

import numpy as np


def draw_seed(seed: int, row_id: str, kind: str, index: int, attempt: int = 0) -> int:
    """A 63-bit seed for attempt `attempt` at draw `index` of `kind` for one row. A row's id is the hash of its content."""
    suffix = f"\0{attempt}" if attempt else ""
    digest = hashlib.sha256(f"{seed}\0{row_id}\0{kind}\0{index}{suffix}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, row_id: str, kind: str, index: int, attempt: int = 0) -> np.random.Generator:
    """The random number generator of one draw."""
    return np.random.Generator(np.random.PCG64(draw_seed(seed, row_id, kind, index, attempt)))
