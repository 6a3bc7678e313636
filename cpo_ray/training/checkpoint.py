"""Checkpoints: DeepSpeed writes each worker's shard, Ray Train publishes them as one, whole or not at all."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
import torch.distributed

CURSOR = "cursor.json"


def save_checkpoint(engine: Any, finished: int, export: Callable[[Path], None] | None = None) -> None:
    """Save engine and cursor on every worker, and report them to Ray Train, which makes them the latest checkpoint.

    finished: optimizer steps done. export(folder): called on rank 0, puts the final model into the checkpoint.
    """
    with tempfile.TemporaryDirectory(prefix="cpo-ray-checkpoint-") as name:
        folder = Path(name)
        engine.save_checkpoint(str(folder), tag="engine")
        if torch.distributed.get_rank() == 0:
            (folder / CURSOR).write_text(json.dumps({"finished": finished}), encoding="utf-8")
        if export is not None:
            export(folder / "model")
        torch.distributed.barrier()
        ray.train.report({"finished": finished}, checkpoint=ray.train.Checkpoint.from_directory(folder))


def load_checkpoint(engine: Any) -> int:
    """Restore the engine from Ray Train's latest checkpoint, if there is one. Returns the optimizer steps done."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as name:
        engine.load_checkpoint(name, tag="engine")
        return int(json.loads((Path(name) / CURSOR).read_text(encoding="utf-8"))["finished"])
