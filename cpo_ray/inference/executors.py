"""vLLM executors that exit with the actor that started them. vLLM's engine core process loads them by dotted name.

vLLM's asynchronous engine runs its core, with the scheduler, in a separate process. If the actor is killed, that process
would wait for requests forever.
"""

import multiprocessing
import os
import threading
from multiprocessing.connection import wait

from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.executor.uniproc_executor import UniProcExecutor


class OneWorker(UniProcExecutor):
    """Run the only worker inside the core's process.

    On CPU machines vLLM starts a separate process for it, to bind its threads to cores. With
    `VLLM_CPU_OMP_THREADS_BIND=nobind` that is not needed.
    """

    def _init_executor(self) -> None:
        end_with_parent()
        super()._init_executor()


class SeveralWorkers(MultiprocExecutor):
    """One process per GPU. The workers exit with the core's process, and the core with its workers."""

    def _init_executor(self) -> None:
        end_with_parent()
        super()._init_executor()


def end_with_parent() -> None:
    """Exit this process as soon as its parent has exited for any reason."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return  # the engine runs in the actor's own process

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
