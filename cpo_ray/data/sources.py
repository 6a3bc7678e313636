"""The files that `data.path` names, called parts: local files, fsspec URLs, or a dataset on the Hugging Face hub."""

import contextlib
import glob
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

from cpo_ray.errors import DataError

JSONL = (".jsonl",)
SUFFIXES = {
    "dolly": JSONL,
    "instructions": JSONL,
    "wikidump": (".bz2", ".xml"),
    "text": (".txt", ".tokens", ".raw"),
}
"""Endings of the files that are read from a folder, by source. Hidden files and subfolders are not read."""

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def list_parts(path: str, source: str) -> list[str]:
    """The files that `path` names, sorted by name: the file itself, or those of a folder or pattern.

    A dataset on the hub is downloaded and has one part. Raises DataError if a folder or pattern has no files, or if a URL
    cannot be listed. A missing file is reported later, by `open_part`.
    """
    suffixes = SUFFIXES[source]
    if suffixes == JSONL and _is_hub_dataset(path):
        from cpo_ray.data.hub import fetch_rows

        return [str(fetch_rows(path))]
    with _as_data_error(path):
        parts = _list_remote(path, suffixes) if "://" in path else _list_local(path, suffixes)
    if not parts:
        raise DataError(
            f"data.path: {path} has no file for source {source}: one ending in {', '.join(suffixes)} is needed"
        )
    return parts


def fingerprint(path: str, source: str) -> list[str | None]:
    """A hash of each part's content, in order: of the bytes of a local file, of the store's metadata for a remote one.

    None for a missing local file.
    """
    return [_fingerprint(part) for part in list_parts(path, source)]


@contextlib.contextmanager
def open_part(part: str, hint: str = "") -> Iterator[IO[bytes]]:
    """Open a part for reading bytes. hint: what to do if the file is missing.

    Raises DataError for a missing file, no permission or a lost connection, also while the caller reads.
    """
    with _as_data_error(part, hint), _open(part) as file:
        yield file


def part_bytes(part: str, hint: str = "") -> int:
    """Stored size of a part; 0 if the store does not report it. Raises DataError like `open_part`."""
    with _as_data_error(part, hint):
        if "://" not in part:
            return Path(part).expanduser().stat().st_size
        fs, root = _file_system(part)
        return int(fs.size(root) or 0)


def _open(part: str) -> IO[bytes]:
    if "://" not in part:
        return Path(part).expanduser().open("rb")
    import fsspec

    return cast("IO[bytes]", fsspec.open(part, "rb").open())


def _list_local(path: str, suffixes: Sequence[str]) -> list[str]:
    local = Path(path).expanduser()
    if local.is_dir():
        return [str(file) for file in sorted(local.iterdir()) if file.is_file() and _is_part(file.name, suffixes)]
    if glob.has_magic(path) and not local.exists():
        return [file for file in sorted(glob.glob(str(local))) if Path(file).is_file()]  # noqa: PTH207 - may be absolute
    return [path]


def _list_remote(url: str, suffixes: Sequence[str]) -> list[str]:
    fs, root = _file_system(url)
    if "*" in url:
        return sorted(fs.unstrip_protocol(name) for name in fs.glob(root))
    if url.endswith(tuple(suffixes)) or not fs.isdir(root):  # isdir on a web server downloads the whole file
        return [url]
    names = [entry["name"] for entry in fs.ls(root, detail=True) if entry["type"] == "file"]
    return sorted(fs.unstrip_protocol(name) for name in names if _is_part(name.rsplit("/", 1)[-1], suffixes))


def _is_part(name: str, suffixes: Sequence[str]) -> bool:
    return name.endswith(tuple(suffixes)) and not name.startswith(".")


def _file_system(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    return cast("tuple[Any, str]", url_to_fs(url))


def _fingerprint(part: str) -> str | None:
    with _as_data_error(part):
        if "://" in part:
            fs, root = _file_system(part)
            metadata = sorted(
                fs.info(root).items()
            )  # size and, depending on the store, ETag, modification time, commit
            return hashlib.sha256(str(metadata).encode()).hexdigest()
        local = Path(part).expanduser()
        if not local.is_file():
            return None
        with local.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _as_data_error(part: str, hint: str = "") -> Iterator[None]:
    """Turn the exceptions of a file system into a DataError with a remedy."""
    try:
        yield
    except FileNotFoundError as error:
        advice = (hint or "Name a file, a folder or a URL with --set data.path=...") + _hub_advice(part)
        cause = f" ({error.__cause__})" if error.__cause__ else ""  # fsspec: the web server's response
        raise DataError(f"no data file {part}{cause}. {advice}") from None
    except ImportError as error:  # fsspec: the package for this protocol
        raise DataError(f"data.path: {part} needs a package that is not installed: {error}") from None
    except _unreadable(part) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{part} cannot be read: {reason}. Name another file with --set data.path=FILE.") from None
    except ValueError as error:
        if not str(error).startswith("Protocol not known"):
            raise
        raise DataError(f"data.path: {part}: {error}") from None


def _unreadable(part: str) -> tuple[type[Exception], ...]:
    """The exceptions for a file that cannot be read. fsspec does not convert those of its HTTP and hub clients."""
    if part.startswith(("http://", "https://")):
        from aiohttp import ClientError

        return (OSError, ClientError)
    if part.startswith("hf://"):
        from httpx2 import HTTPError

        return (OSError, HTTPError)
    return (OSError,)


def _is_hub_dataset(path: str) -> bool:
    """Whether `path` has the form `owner/name` and no local file or folder has that name."""
    return bool(HUB_ID.fullmatch(path)) and not path.endswith(sum(SUFFIXES.values(), ())) and not Path(path).exists()


def _hub_advice(part: str) -> str:
    if not _is_hub_dataset(part):
        return ""
    return f" For a dataset on the Hugging Face hub, name its files: data.path=hf://datasets/{part}/*.txt"
