"""Upload of checkpoints: an outage of the storage is retried for some minutes, a full disk ends training at once."""

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

RETRY_FOR_S = 300.0  # how long the storage may be unreachable; training continues meanwhile
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0
DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
SHORT_WRITE_MESSAGES = ("unexpected pos", "pytorchstreamwriter failed writing")  # torch.save's errors on a full disk

Retried = TypeVar("Retried")
Refuse = Callable[[str], None]  # called with the reason why training must not continue


def storage_location(cluster: ClusterConfig, checkpoints: Path) -> tuple[str, str]:
    """Ray Train's storage path and the name of a training in it. checkpoints: its folder, RUN/checkpoints/NAME.

    Runs may share `cluster.checkpoint_storage`, and trainings of the same recipe have the same NAME in all of them. So the
    name there contains a hash of the run's path, which is the same on every node that the run may resume on.
    """
    folder = checkpoints.parent.resolve()
    if cluster.checkpoint_storage is None:
        return str(folder), checkpoints.name
    run = folder.parent
    digest = hashlib.sha256(str(run).encode()).hexdigest()[:8]
    return cluster.checkpoint_storage, f"{run.name}-{digest}-{checkpoints.name}"


def uploader(refuse: Refuse, wait_until_logged: Callable[[], None]) -> Callable[[Checkpoint, str], Checkpoint]:
    """Ray Train's own upload of a checkpoint, with retries. Calls `refuse` if the storage is full.

    wait_until_logged: returns once the driver has written the metrics of all steps up to the checkpoint to disk. Without it,
    a driver killed in between would lose those lines: training that resumes from the checkpoint does not repeat the steps.
    """

    def upload(checkpoint: Checkpoint, name: str) -> Checkpoint:
        wait_until_logged()
        storage = ray.train.get_context().get_storage()
        try:
            return retry_os_errors(partial(storage.persist_current_checkpoint, checkpoint, name))
        except OSError as error:
            advice = disk_full_advice(error)
            if advice is not None:
                refuse(advice)
            raise

    return upload


def retry_os_errors(action: Callable[[], Retried]) -> Retried:
    """Call `action()` again after an OSError, for RETRY_FOR_S. A full disk and a missing file are not retried."""
    deadline, wait = time.monotonic() + RETRY_FOR_S, FIRST_WAIT_S
    while True:
        try:
            return action()
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno in DISK_FULL or time.monotonic() + wait > deadline:
                raise
        time.sleep(wait)
        wait = min(2 * wait, LONGEST_WAIT_S)


def disk_full_advice(error: BaseException) -> str | None:
    """A message for the user if this error means that a disk is full; None for any other error."""
    full = isinstance(error, OSError) and error.errno in DISK_FULL
    if not full and not any(text in str(error).lower() for text in SHORT_WRITE_MESSAGES):
        return None
    return f"no room for a checkpoint: {error}. Earlier checkpoints are kept: make room and run the same command again"
