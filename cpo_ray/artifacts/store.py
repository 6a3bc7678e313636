"""A store of artifacts that several runs share, addressed by their inputs: a sweep builds each of them once."""

import contextlib
import hashlib
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cpo_ray.artifacts.hashing import canonical, hash_file
from cpo_ray.artifacts.manifest import INPUTS, MANIFEST, Artifact, Summary, find_artifact
from cpo_ray.errors import ArtifactError


class Store:
    """A folder of finished artifacts, `<name>/<hash of the inputs>`. Files are hard links if the disk is the same."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, name: str, inputs: dict[str, Any]) -> Artifact | None:
        """The artifact made from these inputs, if a run has added it. One whose content has changed since is removed."""
        place = self._place(name, inputs)
        try:
            artifact = find_artifact(self.root, place)
        except ArtifactError:  # a file is missing or has another size, or the manifest is damaged
            shutil.rmtree(self.root / place)
            return None
        if artifact is None:
            return None
        files = artifact.manifest.files.items()
        if any(hash_file(artifact.path / relative) != entry["sha256"] for relative, entry in files):
            shutil.rmtree(artifact.path)
            return None
        return artifact

    def every(self, name: str) -> Iterator[Artifact]:
        """All undamaged artifacts of this name."""
        for folder in sorted((self.root / name).glob("*")):
            artifact = None
            if not folder.name.startswith("."):
                with contextlib.suppress(ArtifactError):  # `find` removes a damaged one
                    artifact = find_artifact(self.root, f"{name}/{folder.name}")
            if artifact is not None:
                yield artifact

    def add(self, artifact: Artifact) -> None:
        """Add an artifact for other runs. If two runs add the same one at a time, the first wins."""
        place = self.root / self._place(artifact.name, artifact.manifest.inputs)
        if place.exists():
            return
        partial = place.with_name(f".{place.name}.{socket.gethostname()}.{os.getpid()}.partial")
        if partial.exists():  # left by a killed process with this id
            shutil.rmtree(partial)
        for relative in [*artifact.manifest.files, MANIFEST]:
            _link(artifact.path / relative, partial / relative)
        try:
            partial.rename(place)
        except OSError:
            if not place.exists():
                raise
            shutil.rmtree(partial)

    @staticmethod
    def copy(artifact: Artifact, out: Path) -> Summary:
        """Fill the folder `out` with an artifact's files: a builder for `make_artifact`."""
        for stray in set(out.iterdir()) - {out / INPUTS}:
            shutil.rmtree(stray) if stray.is_dir() else stray.unlink()
        for relative in artifact.manifest.files:
            _link(artifact.path / relative, out / relative)
        return artifact.manifest.summary

    @staticmethod
    def is_linked(shared: Artifact, artifact: Artifact) -> bool:
        """Whether an artifact's files are those of the store, by hard links, and not copies."""
        files = artifact.manifest.files
        return all((artifact.path / file).samefile(shared.path / file) for file in files)

    @staticmethod
    def _place(name: str, inputs: dict[str, Any]) -> str:
        return f"{name}/{hashlib.sha256(canonical(inputs).encode()).hexdigest()[:16]}"


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without hard links
        shutil.copyfile(source, target)
