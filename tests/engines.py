"""Find vLLM's engine processes among a test's child processes."""

import psutil


def engine_processes() -> list[psutil.Process]:
    """vLLM's engine processes among the children of this process.

    They are recognised by their title or by how they were started: a process whose first environment variable was changed
    cannot set its title, and Ray sets its workers' variables in any order, so some engines have no title.
    """
    return [process for process in psutil.Process().children(recursive=True) if _is_engine(process)]


def _is_engine(process: psutil.Process) -> bool:
    try:
        words = " ".join(process.cmdline())
        if "VLLM::EngineCore" in words:
            return True
        spawned, parent = "--multiprocessing-fork" in words, process.parent()
        return spawned and parent is not None and "dashboard" not in " ".join(parent.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):  # it has just ended
        return False
