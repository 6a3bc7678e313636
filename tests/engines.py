"""Finding vLLM's own processes among those that a test has started."""

import psutil


def engine_processes() -> list[psutil.Process]:
    """vLLM's engine processes below this process.

    Told by their title, or by how they were started: a process whose first environment variable has been changed cannot
    take a title, and Ray hands its workers their variables in any order, so now and then an engine has none.
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
