"""One owner per run directory."""

import contextlib
import fcntl
import getpass
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from cpo_ray.errors import RunInUseError


@contextlib.contextmanager
def lock_run(root: Path) -> Iterator[None]:
    """Lock the run directory. The lock ends with the process, even if it is killed.

    Raises RunInUseError naming the owner if another process holds it.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / "run.lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "a process that has not written its name yet"
            raise RunInUseError(
                f"{root} is in use by {owner}. Wait for it, end it, or choose another --run-dir."
            ) from None
        file.truncate(0)
        file.write(
            f"pid {os.getpid()} of {getpass.getuser()} on {socket.gethostname()}, since {time.strftime('%F %T')}"
        )
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
