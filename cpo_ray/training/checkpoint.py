"""Checkpoints: DeepSpeed writes each worker's shard, and Ray Train publishes them as one checkpoint, complete or not at all.

Every worker writes a seal: the SHA-256 of each of its files. If the seals of a checkpoint do not match its files, training
resumes from the checkpoint before it.
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
from cpo_ray.objective.adapters import has_adapter
from cpo_ray.training.deepspeed_engine import load_universal, to_universal
from cpo_ray.training.models import copy_model
from cpo_ray.training.storage import Refuse, uploader

CURSOR = "cursor.json"
TAG = "engine"

StoredCheckpoint = tuple[Checkpoint, dict[str, Any]]  # a checkpoint and the metrics that it was reported with


@dataclass(frozen=True)
class Saved:
    """An intact checkpoint."""

    checkpoint: Checkpoint
    finished: int  # optimizer steps done
    workers: int  # that wrote it

    def needs_resharding(self, zero_stage: int) -> bool:
        """Whether this number of workers needs other shards. Without ZeRO there are none: each worker saves everything."""
        return zero_stage > 0 and self.workers != dist.get_world_size()


def save_checkpoint(
    engine: Any,
    metrics: dict[str, Any],
    *,
    wait: bool,
    refuse: Refuse,
    wait_until_logged: Callable[[], None],
    export: Callable[[Path], None] | None = None,
) -> None:
    """Save engine and cursor on every worker and report them to Ray Train, which makes them the latest checkpoint.

    metrics: `finished` (optimizer steps done) and, if measured, `validation_loss`. wait: return only once the checkpoint is
    in the storage and Ray Train would resume from it; otherwise it is uploaded while training continues. refuse(reason):
    called if the storage is full. wait_until_logged: see `storage.uploader`. export(folder): writes the current model into
    the checkpoint on rank 0; every worker calls it.
    """
    folder = Path(tempfile.mkdtemp(prefix=_own_scratch_prefix()))
    write_shard(engine, folder)
    if dist.get_rank() == 0:
        cursor = {"finished": metrics["finished"], "workers": dist.get_world_size()}
        (folder / CURSOR).write_text(json.dumps(cursor), encoding="utf-8")
    if export is not None:
        export(folder / "model")
    _write_seal(folder, dist.get_rank())
    ray.train.report(
        metrics,
        checkpoint=Checkpoint.from_directory(folder),
        checkpoint_upload_mode=CheckpointUploadMode.SYNC if wait else CheckpointUploadMode.ASYNC,
        delete_local_checkpoint_after_upload=True,
        checkpoint_upload_fn=uploader(refuse, wait_until_logged),
    )
    if wait:  # Ray Train's controller registers it later, and may be lost with its machine before that
        ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)


def write_shard(engine: Any, folder: Path) -> None:
    """Write this worker's shard of weights and optimizer. The frozen weights beside an adapter stay in their base."""
    engine.save_checkpoint(str(folder), tag=TAG, exclude_frozen_parameters=has_adapter(engine.module.model))


def clear_scratch() -> None:
    """Remove temporary folders on this node of workers of this training that were killed or could not upload."""
    if ray.train.get_context().get_local_rank() == 0:
        for folder in Path(tempfile.gettempdir()).glob(f"{_own_scratch_prefix()}*"):
            shutil.rmtree(folder)


def find_checkpoint(notify: Callable[[str], None]) -> Saved | None:
    """The newest intact checkpoint, None if there is none. Calls `notify` on rank 0 for each damaged one.

    All workers find the same one: each checks a share of the seals, and a fault found by one counts for all.
    """
    reported = ray.train.get_all_reported_checkpoints() if ray.train.get_checkpoint() is not None else []
    for candidate in sorted(reported, key=lambda entry: -entry.metrics["finished"]):
        with candidate.checkpoint.as_directory() as name:
            faults: list[str | None] = [None] * dist.get_world_size()
            dist.all_gather_object(faults, find_fault(Path(name), dist.get_rank(), dist.get_world_size()))
            fault = next(filter(None, faults), None)
            if fault is None:
                cursor = json.loads((Path(name) / CURSOR).read_text(encoding="utf-8"))
                return Saved(candidate.checkpoint, cursor["finished"], cursor["workers"])
        if dist.get_rank() == 0:
            step = candidate.metrics["finished"]
            notify(f"the checkpoint of step {step} is damaged ({fault}): resuming from the one before")
    return None


def load_checkpoint(engine: Any, saved: Saved) -> None:
    """Restore weights and optimizer, on the number of workers that wrote them or on another."""
    with saved.checkpoint.as_directory() as name:
        if not saved.needs_resharding(engine.zero_optimization_stage()):
            read_shard(engine, Path(name))
            return
        with _universal_checkpoint(Path(name)) as folder:
            load_universal(engine, folder, TAG)


def read_shard(engine: Any, folder: Path) -> None:
    """Restore what `write_shard` has written on as many workers."""
    engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=not has_adapter(engine.module.model))


def copy_first_intact_model(
    stored: Sequence[StoredCheckpoint], out: Path, notify: Callable[[str], None]
) -> dict[str, Any] | None:
    """Copy the model of the first intact checkpoint into `out`. Returns the metrics that it was reported with.

    None if no checkpoint is intact. Calls `notify` for damaged ones.
    """
    for checkpoint, metrics in stored:
        with checkpoint.as_directory() as name:
            fault = find_fault(Path(name))
            if fault is None:
                copy_model(Path(name) / "model", out)
                return metrics
        notify(f"the checkpoint of step {metrics['finished']} is damaged ({fault}): its model is not used")
    return None


def sort_by_validation_loss(stored: Sequence[StoredCheckpoint]) -> list[StoredCheckpoint]:
    """Lowest loss first. Of equal ones the newest is first: it may replace a damaged checkpoint of the same step.

    stored: in Ray Train's order, where the newest of equal ones is last.
    """
    newest_first = list(reversed(stored))
    return sorted(newest_first, key=lambda entry: entry[1]["validation_loss"])


def find_fault(folder: Path, part: int = 0, parts: int = 1) -> str | None:
    """What is wrong with the files of a checkpoint, None if they match the seals. Checks every `parts`th seal from `part`."""
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
    """A JSON object; None if the file holds anything else, for example after an incomplete write."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None
    return value if isinstance(value, dict) else None


def _write_seal(folder: Path, rank: int) -> None:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    digests = {path.relative_to(folder).as_posix(): hash_file(path) for path in files}
    (folder / _seal_name(rank)).write_text(json.dumps(digests), encoding="utf-8")


def _seal_name(rank: int) -> str:
    return f"seal-{rank:05d}.json"


@contextlib.contextmanager
def _universal_checkpoint(source: Path) -> Iterator[Path]:
    """The checkpoint in DeepSpeed's universal form, for any number of workers. Written once per node, then deleted."""
    folder = Path(tempfile.gettempdir()) / f"{_own_scratch_prefix()}universal"
    first_on_node = ray.train.get_context().get_local_rank() == 0
    if first_on_node:
        to_universal(source / TAG, folder / TAG)
    dist.barrier()
    try:
        yield folder
    finally:
        dist.barrier()
        if first_on_node:
            shutil.rmtree(folder)


def _own_scratch_prefix() -> str:
    return scratch_prefix(ray.train.get_context().get_storage().experiment_fs_path)


def scratch_prefix(storage: str) -> str:
    """Prefix of the temporary folders of the training with this storage path. Those of other trainings must stay."""
    return f"cpo-ray-{hashlib.sha256(storage.encode()).hexdigest()[:16]}-"
