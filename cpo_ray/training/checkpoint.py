"""Checkpoints: DeepSpeed writes each worker's shard, Ray Train publishes them as one, whole or not at all.

Every worker seals its files with their hashes. A checkpoint whose seals do not hold is passed over for the one before.
"""

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointConsistencyMode, CheckpointUploadMode

from cpo_ray.artifacts import hash_file
from cpo_ray.training.deepspeed_engine import load_universal, to_universal
from cpo_ray.training.models import copy_model
from cpo_ray.training.storage import Refuse, uploader

CURSOR = "cursor.json"
TAG = "engine"

Kept = tuple[Checkpoint, dict[str, Any]]  # a checkpoint in the storage, and the metrics that it was reported with


@dataclass(frozen=True)
class Saved:
    """A whole checkpoint."""

    checkpoint: Checkpoint
    finished: int  # optimizer steps done
    workers: int  # that wrote it

    def reshards(self, zero_stage: int) -> bool:
        """Whether its shards must be cut anew for this number of workers. Without ZeRO there are none: each has the whole."""
        return zero_stage > 0 and self.workers != dist.get_world_size()


def save_checkpoint(
    engine: Any,
    metrics: dict[str, Any],
    *,
    wait: bool,
    refuse: Refuse,
    until_known: Callable[[], None],
    export: Callable[[Path], None] | None = None,
) -> None:
    """Save engine and cursor on every worker and report them to Ray Train, which makes them the latest checkpoint.

    metrics: `finished` (optimizer steps done) and, where it was measured, `validation_loss`. wait: return only when the
    checkpoint is in the storage and Ray Train would begin from it; else it is uploaded while training goes on.
    refuse(reason): called where the storage is full. until_known: see `storage.uploader`. export(folder): called on rank
    0, puts the model as it is now into the checkpoint.
    """
    folder = Path(tempfile.mkdtemp(prefix=_scratch()))
    engine.save_checkpoint(str(folder), tag=TAG)
    if dist.get_rank() == 0:
        cursor = {"finished": metrics["finished"], "workers": dist.get_world_size()}
        (folder / CURSOR).write_text(json.dumps(cursor), encoding="utf-8")
    if export is not None:
        export(folder / "model")
    _seal(folder, dist.get_rank())
    ray.train.report(
        metrics,
        checkpoint=Checkpoint.from_directory(folder),
        checkpoint_upload_mode=CheckpointUploadMode.SYNC if wait else CheckpointUploadMode.ASYNC,
        delete_local_checkpoint_after_upload=True,
        checkpoint_upload_fn=uploader(refuse, until_known),
    )
    if wait:  # Ray Train's controller hears of it later, and may be lost with its machine before that
        ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)


def clear_scratch() -> None:
    """Remove what workers of this training that were killed, or could not store it, have left on this node."""
    if ray.train.get_context().get_local_rank() == 0:
        for folder in Path(tempfile.gettempdir()).glob(f"{_scratch()}*"):
            shutil.rmtree(folder)


def find_checkpoint(tell: Callable[[str], None]) -> Saved | None:
    """The newest checkpoint that is whole, None where there is none. `tell` hears of those that are not (on rank 0).

    All workers find the same one: each checks a share of the seals, and one that is broken for any is broken for all.
    """
    reported = ray.train.get_all_reported_checkpoints() if ray.train.get_checkpoint() is not None else []
    for candidate in sorted(reported, key=lambda entry: -entry.metrics["finished"]):
        with candidate.checkpoint.as_directory() as name:
            fault = find_fault(Path(name), dist.get_rank(), dist.get_world_size())
            faults: list[str | None] = [None] * dist.get_world_size()
            dist.all_gather_object(faults, fault)
            broken = next(filter(None, faults), None)
            if broken is None:
                cursor = json.loads((Path(name) / CURSOR).read_text(encoding="utf-8"))
                return Saved(candidate.checkpoint, cursor["finished"], cursor["workers"])
        if dist.get_rank() == 0:
            tell(
                f"the checkpoint of step {candidate.metrics['finished']} is damaged ({broken}): going on from the one before"
            )
    return None


def load_checkpoint(engine: Any, saved: Saved) -> None:
    """Restore weights and optimizer, on as many workers as wrote them or on another number."""
    with saved.checkpoint.as_directory() as name:
        if not saved.reshards(engine.zero_optimization_stage()):
            engine.load_checkpoint(name, tag=TAG)
            return
        with _universal(Path(name)) as folder:
            load_universal(engine, folder, TAG)


def take_model(kept: Sequence[Kept], out: Path, tell: Callable[[str], None]) -> bool:
    """Copy the model in the first of these checkpoints that is whole into `out`. `tell` hears of those that are not."""
    for checkpoint, metrics in kept:
        with checkpoint.as_directory() as name:
            fault = find_fault(Path(name))
            if fault is None:
                copy_model(Path(name) / "model", out)
                return True
        tell(f"the checkpoint of step {metrics['finished']} is damaged ({fault}): its model is not taken")
    return False


def best_first(kept: Sequence[Kept]) -> list[Kept]:
    """By validation loss. Of equals the last made comes first: one that was damaged has been made again.

    kept: as Ray Train has it, where the last made of equals comes last.
    """
    last_made_first = list(reversed(kept))
    return sorted(last_made_first, key=lambda entry: entry[1]["validation_loss"])


def find_fault(folder: Path, part: int = 0, parts: int = 1) -> str | None:
    """What is wrong with a checkpoint's files, None where they are as they were sealed. Checks every `parts`th seal."""
    cursor = folder / CURSOR
    if not cursor.is_file():
        return f"{CURSOR} is missing"
    workers = (_read_object(cursor) or {}).get("workers")
    if not isinstance(workers, int):
        return f"{CURSOR} is not JSON, or not a cursor"
    for rank in range(part, workers, parts):
        seal = folder / _seal_name(rank)
        if not seal.is_file():
            return f"{seal.name} is missing"
        digests = _read_object(seal)
        if digests is None:
            return f"{seal.name} is not JSON, or not a seal"
        for name, digest in digests.items():
            file = folder / name
            if not file.is_file():
                return f"{name} is missing"
            if hash_file(file) != digest:
                return f"{name} has changed since it was written"
    return None


def _read_object(file: Path) -> dict[str, Any] | None:
    """A JSON object; None where the file holds anything else, as after a torn write."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None
    return value if isinstance(value, dict) else None


def _seal(folder: Path, rank: int) -> None:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    digests = {path.relative_to(folder).as_posix(): hash_file(path) for path in files}
    (folder / _seal_name(rank)).write_text(json.dumps(digests), encoding="utf-8")


def _seal_name(rank: int) -> str:
    return f"seal-{rank:05d}.json"


@contextlib.contextmanager
def _universal(source: Path) -> Iterator[Path]:
    """The checkpoint in DeepSpeed's form that any number of workers loads: made once a node, gone afterwards."""
    mine = Path(tempfile.gettempdir()) / f"{_scratch()}universal"
    first_on_node = ray.train.get_context().get_local_rank() == 0
    if first_on_node:
        to_universal(source / TAG, mine / TAG)
    dist.barrier()
    try:
        yield mine
    finally:
        dist.barrier()
        if first_on_node:
            shutil.rmtree(mine)


def _scratch() -> str:
    return scratch_prefix(ray.train.get_context().get_storage().experiment_fs_path)


def scratch_prefix(storage: str) -> str:
    """How the temporary folders of the training in this place begin: those of another are not ours to remove."""
    return f"cpo-ray-{hashlib.sha256(storage.encode()).hexdigest()[:16]}-"
