"""Checkpoints on their way to the storage: an outage is waited out, within bounds; a full disk is told at once."""

import errno
import hashlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import ray.train
from ray.train import Checkpoint

from cpo_ray.config import ClusterConfig

PATIENCE_S = 300.0  # how long the storage may be out of reach; training goes on meanwhile
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0
FULL = {errno.ENOSPC, errno.EDQUOT}
TORCH_SIGNS = ("unexpected pos", "pytorchstreamwriter failed writing")  # what torch.save makes of a short write

Result = TypeVar("Result")
Refuse = Callable[[str], None]


def storage_place(cluster: ClusterConfig, checkpoints: Path) -> tuple[str, str]:
    """Where Ray Train keeps a training, and its name there. checkpoints: its folder, RUN/checkpoints/NAME.

    Runs may share `cluster.checkpoint_storage`, and trainings of the same recipe have the same NAME in all of them. A run's
    path tells it from others, and is the same on every node that it may go on from.
    """
    folder = checkpoints.parent.resolve()
    if cluster.checkpoint_storage is None:
        return str(folder), checkpoints.name
    run = folder.parent
    digest = hashlib.sha256(str(run).encode()).hexdigest()[:8]
    return cluster.checkpoint_storage, f"{run.name}-{digest}-{checkpoints.name}"


def uploader(refuse: Refuse, until_known: Callable[[], None]) -> Callable[[Checkpoint, str], Checkpoint]:
    """Ray Train's own way of storing a checkpoint, with patience. `refuse` hears why training must not go on.

    until_known: returns once the driver has written down the metrics of the steps before. Who goes on from the checkpoint does
    not take those steps again: of a driver that was killed in between, their lines would be missing for ever.
    """

    def upload(checkpoint: Checkpoint, name: str) -> Checkpoint:
        until_known()
        storage = ray.train.get_context().get_storage()
        try:
            return patiently(partial(storage.persist_current_checkpoint, checkpoint, name))
        except OSError as error:
            advice = no_room(error)
            if advice is not None:
                refuse(advice)
            raise

    return upload


def patiently(action: Callable[[], Result]) -> Result:
    """`action()`, again and again after an OSError, for PATIENCE_S. A disk that is full does not empty itself."""
    until, wait = time.monotonic() + PATIENCE_S, FIRST_WAIT_S
    while True:
        try:
            return action()
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno in FULL or time.monotonic() + wait > until:
                raise
        time.sleep(wait)
        wait = min(2 * wait, LONGEST_WAIT_S)


def no_room(error: BaseException) -> str | None:
    """What to tell the user where this error says that a disk is full; None for any other error."""
    full = isinstance(error, OSError) and error.errno in FULL
    if not full and not any(sign in str(error).lower() for sign in TORCH_SIGNS):
        return None
    return f"no room for a checkpoint: {error}. The checkpoints before it stand: make room and run the same command"
