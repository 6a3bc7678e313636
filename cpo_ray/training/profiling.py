"""Profile a few training steps with torch's profiler: time and memory per operator."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

SKIPPED = 2  # steps; the first ones compile, allocate and open connections


@contextlib.contextmanager
def profiling(
    folder: Path | None, steps: int, rank: int, notify: Callable[[str], None]
) -> Iterator[Callable[[], None]]:
    """Yield a function to call after each step. On rank 0, steps 3 to `steps` + 2 after this start are written to `folder`.

    `trace.json` is for https://ui.perfetto.dev, `operators.txt` is a table. Without a folder, or on other ranks, does nothing.
    """
    if folder is None or rank != 0:
        yield lambda: None
        return

    def write(profiler: profile) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(folder / "trace.json"))
        table = profiler.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=40)
        (folder / "operators.txt").write_text(table, encoding="utf-8")
        notify(f"profile of {steps} steps: {folder / 'trace.json'}")

    device = "cuda" if torch.cuda.is_available() else "cpu"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    plan = schedule(wait=SKIPPED - 1, warmup=1, active=steps, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write, profile_memory=True) as profiler:
        yield profiler.step
