"""Wait for asynchronous changes: Ray frees resources and ends processes in the background."""

import time
from collections.abc import Callable


def eventually(condition: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether the condition becomes true within `seconds`, polled ten times a second."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True
