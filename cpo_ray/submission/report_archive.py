"""A report as text, so that a job's log can carry it from the cluster: this needs no access but the token.

`python -m cpo_ray.submission.report_archive NAME [RUN_DIR]` writes the report of a run to stdout.
"""

import base64
import hashlib
import io
import re
import shutil
import sys
import tarfile
from pathlib import Path

from cpo_ray.errors import ArtifactError
from cpo_ray.run_directory import run_directory

LINE = 4096  # characters
LARGEST = 64 * 2**20  # bytes, compressed
ARCHIVE = re.compile(r"^BEGIN REPORT ARCHIVE ([0-9a-f]{64})\n(.*?)^END REPORT ARCHIVE$", re.MULTILINE | re.DOTALL)


def pack(folder: Path) -> str:
    """The folder as a gzipped tar in base64, between two marker lines, with its SHA-256.

    Raises ArtifactError if the folder is missing or too large for a log.
    """
    if not folder.is_dir():
        raise ArtifactError(f"{folder} does not exist")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(folder, arcname=".")
    content = buffer.getvalue()
    if len(content) > LARGEST:
        raise ArtifactError(
            f"{folder} is {len(content) / 2**20:.0f} MiB, too large for a job's log: copy it with `ray rsync-down`"
        )
    text = base64.b64encode(content).decode()
    lines = [text[start : start + LINE] for start in range(0, len(text), LINE)]
    return "\n".join([f"BEGIN REPORT ARCHIVE {hashlib.sha256(content).hexdigest()}", *lines, "END REPORT ARCHIVE"])


def unpack(log: str, target: Path) -> None:
    """Extract the archive in a log to `target`, which is replaced.

    Raises ArtifactError if the archive is missing or incomplete. Members cannot be written outside `target`.
    """
    found = ARCHIVE.search(log)
    content = base64.b64decode(found[2]) if found else b""
    if found is None or hashlib.sha256(content).hexdigest() != found[1]:
        raise ArtifactError(f"the log holds no complete report archive for {target}; its end: {log[-300:].strip()!r}")
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        archive.extractall(partial, filter="data")
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)


if __name__ == "__main__":
    name, *given = sys.argv[1:]
    root = run_directory(name, Path(given[0]) if given else None)
    sys.stdout.write(pack(root / "report") + "\n")
