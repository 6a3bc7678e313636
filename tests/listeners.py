"""Find the addresses on which a process and its children listen."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import psutil

LOOPBACK = ("127.", "::1", "::ffff:127.")


@contextlib.contextmanager
def listeners(process):
    """Yield a set of (process name, address), updated every second until the block or the process ends."""
    seen, over = set(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(_watch, psutil.Process(process), seen, over)
        try:
            yield seen
        finally:
            over.set()
            watching.result()


def beyond_loopback(seen):
    return {entry for entry in seen if not entry[1].startswith(LOOPBACK)}


def _watch(root, seen, over):
    while not over.wait(1):
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in [root, *root.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    connections = each.net_connections("inet")
                    seen |= {(each.name(), c.laddr.ip) for c in connections if c.status == "LISTEN"}
