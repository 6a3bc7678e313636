"""How the engine's processes hang together: none outlives the actor. vLLM loads these by name in its core's process.

vLLM's asynchronous engine has a process for its core, which holds the scheduler. It would wait for requests for ever where
the actor is killed.
"""

import multiprocessing
import os
import threading
from multiprocessing.connection import wait

from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.executor.uniproc_executor import UniProcExecutor


class OneWorker(UniProcExecutor):
    """The only worker, inside the core's process.

    On CPU machines vLLM gives it a process of its own to bind its threads to cores. With `VLLM_CPU_OMP_THREADS_BIND=nobind`
    there is nothing to bind.
    """

    def _init_executor(self) -> None:
        end_with_parent()
        super()._init_executor()


class SeveralWorkers(MultiprocExecutor):
    """A process for each GPU; they end with the core's, and it with them."""

    def _init_executor(self) -> None:
        end_with_parent()
        super()._init_executor()


def end_with_parent() -> None:
    """End this process when the one that started it ends, however that ends."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return  # the engine runs in the process that asked for it

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
