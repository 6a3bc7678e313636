"""Artifacts: folders that are complete or absent, with a manifest, and that are reused if their inputs are the same.

An artifact is built in `.<name>.partial` and renamed once its manifest is written, so a folder without the dot is always
complete. A killed build leaves its partial folder, and the next build with the same inputs continues in it: builders write
their files with `write_atomically` and skip those that exist.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cpo_ray import __version__
from cpo_ray.artifacts.hashing import canonical, hash_file
from cpo_ray.artifacts.io import sync_folder, write_atomically, write_json
from cpo_ray.errors import ArtifactError

MANIFEST = "manifest.json"
INPUTS = "inputs.json"
SELECTED = "selected"  # folder of a groups artifact: the examples that its groups are made of
STATS = "stats.json"  # measurements of what the other files hold, speeds among them: no part of the content

Summary = dict[str, Any]
Builder = Callable[[Path], Summary]


@dataclass(frozen=True)
class Manifest:
    """What an artifact was made from and what it holds."""

    inputs: dict[str, Any]
    files: dict[str, dict[str, Any]]  # relative path -> {"sha256", "bytes", "rows" where it has rows}
    summary: Summary
    seconds: float
    created: str
    version: str = __version__

    @property
    def fingerprint(self) -> str:
        """Hash of the content: equal fingerprints, equal files made from equal inputs."""
        hashes = {name: entry["sha256"] for name, entry in self.files.items() if name != STATS}
        content = {"inputs": self.inputs, "files": hashes}
        return hashlib.sha256(canonical(content).encode()).hexdigest()[:16]

    def part_fingerprint(self, part: str) -> str | None:
        """Hash of the files below the folder `part` alone, whatever the rest was made from; None if it has none."""
        hashes = {name: entry["sha256"] for name, entry in self.files.items() if name.startswith(f"{part}/")}
        return hashlib.sha256(canonical(hashes).encode()).hexdigest()[:16] if hashes else None


@dataclass(frozen=True)
class Artifact:
    """A finished folder and its manifest."""

    name: str
    path: Path
    manifest: Manifest
    reused: bool = field(default=False, compare=False)

    @property
    def fingerprint(self) -> str:
        """Hash of inputs and content: stages that read this artifact depend on it."""
        return self.manifest.fingerprint


def make_artifact(root: Path, name: str, inputs: dict[str, Any], build: Builder) -> Artifact:
    """Return the artifact `root/name` made from `inputs`, building it if it is missing or stale.

    `build(folder)` fills the folder and returns a summary (counts worth printing). A stale artifact is replaced once its
    successor is complete, not before.
    """
    finished = find_artifact(root, name)
    if finished is not None and finished.manifest.inputs == json.loads(canonical(inputs)):
        return Artifact(name, finished.path, finished.manifest, reused=True)

    path = root / name
    partial = path.with_name(f".{path.name}.partial")
    _prepare_partial(partial, inputs)
    started = time.monotonic()
    summary = build(partial)
    manifest = Manifest(
        inputs=inputs,
        files=_describe_files(partial),
        summary=summary,
        seconds=round(time.monotonic() - started, 1),
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    write_json(partial / MANIFEST, asdict(manifest))
    _replace_folder(partial, path)
    (path / INPUTS).unlink()
    return Artifact(name, path, manifest)


def find_artifact(root: Path, name: str) -> Artifact | None:
    """The finished artifact `root/name`, or None. Raises ArtifactError if its files do not match its manifest."""
    path = root / name
    if not (path / MANIFEST).is_file():
        return None
    try:
        manifest = Manifest(**json.loads((path / MANIFEST).read_text(encoding="utf-8")))
    except (json.JSONDecodeError, TypeError) as error:
        raise ArtifactError(
            f"{path / MANIFEST} is not a manifest ({error}). Delete {path}, and the next run rebuilds it."
        ) from None
    for relative, entry in manifest.files.items():
        file = path / relative
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            raise ArtifactError(f"{file} does not match its manifest. Delete {path}, and the next run rebuilds it.")
    return Artifact(name, path, manifest)


def _prepare_partial(partial: Path, inputs: dict[str, Any]) -> None:
    """Keep a partial folder that was begun with the same inputs, otherwise start an empty one."""
    begun = partial / INPUTS
    if begun.is_file() and begun.read_text(encoding="utf-8") == canonical(inputs):
        for torn in partial.rglob(".*.tmp"):  # of a killed writer
            torn.unlink()
        return
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    with write_atomically(begun) as temporary:
        temporary.write_text(canonical(inputs), encoding="utf-8")


def _describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    described = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        if file in (folder / INPUTS, folder / MANIFEST):
            continue
        entry: dict[str, Any] = {"sha256": hash_file(file), "bytes": file.stat().st_size}
        if file.suffix == ".parquet":
            entry["rows"] = pq.ParquetFile(file).metadata.num_rows
        elif file.suffix == ".jsonl":
            with file.open("rb") as lines:
                entry["rows"] = sum(1 for _ in lines)
        described[file.relative_to(folder).as_posix()] = entry
    return described


def _replace_folder(new: Path, place: Path) -> None:
    sync_folder(new)
    old = place.with_name(f".{place.name}.old")
    if old.exists():
        shutil.rmtree(old)
    if place.exists():
        place.rename(old)
    new.rename(place)
    if old.exists():
        shutil.rmtree(old)
