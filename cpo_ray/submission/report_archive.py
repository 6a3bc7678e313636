"""A folder as text, for the way from a cluster to a laptop: through a job's log, which needs the token and nothing else.

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
from cpo_ray.run import run_directory

LINE = 4096  # characters
LARGEST = 64 * 2**20  # bytes, packed
PARCEL = re.compile(r"^BEGIN PARCEL ([0-9a-f]{64})\n(.*?)^END PARCEL$", re.MULTILINE | re.DOTALL)


def pack(folder: Path) -> str:
    """The folder as gzipped tar in base64, between two marks, with its SHA-256.

    Raises ArtifactError where the folder is missing or larger than a log should carry.
    """
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not there")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(folder, arcname=".")
    content = buffer.getvalue()
    if len(content) > LARGEST:
        raise ArtifactError(
            f"{folder} is {len(content) / 2**20:.0f} MiB, too much for a job's log: copy it with `ray rsync-down`"
        )
    text = base64.b64encode(content).decode()
    lines = [text[start : start + LINE] for start in range(0, len(text), LINE)]
    return "\n".join([f"BEGIN PARCEL {hashlib.sha256(content).hexdigest()}", *lines, "END PARCEL"])


def unpack(log: str, target: Path) -> None:
    """Put the parcel that a log holds at `target`, in place of what is there.

    Raises ArtifactError where there is no whole parcel. What is in it stays within `target`.
    """
    found = PARCEL.search(log)
    content = base64.b64decode(found[2]) if found else b""
    if found is None or hashlib.sha256(content).hexdigest() != found[1]:
        raise ArtifactError(f"the log holds no whole parcel for {target}; its end: {log[-300:].strip()!r}")
    arriving = target.with_name(f".{target.name}.partial")
    shutil.rmtree(arriving, ignore_errors=True)
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        archive.extractall(arriving, filter="data")
    if target.exists():
        shutil.rmtree(target)
    arriving.rename(target)


if __name__ == "__main__":
    name, *given = sys.argv[1:]
    root = run_directory(name, Path(given[0]) if given else None)
    sys.stdout.write(pack(root / "report") + "\n")
