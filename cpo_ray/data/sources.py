"""From `data.path` to the files it names, its parts: on this machine, behind an fsspec URL, or a data set on the hub."""

import contextlib
import glob
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

from cpo_ray.errors import DataError

ROWS = (".jsonl",)
SUFFIXES = {
    "dolly": ROWS,
    "instructions": ROWS,
    "wikidump": (".bz2", ".xml"),
    "text": (".txt", ".tokens", ".raw"),
}
"""What a folder's files must end with to be read, by source. Hidden files and folders within the folder are not read."""

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def list_parts(path: str, source: str) -> list[str]:
    """The files that `path` names, sorted by name: itself, a folder's, or a pattern's. A missing file is `open_part`'s to tell.

    A data set on the hub is fetched and has one part. Raises DataError where a folder or pattern names none, or where a URL
    cannot be listed.
    """
    suffixes = SUFFIXES[source]
    if suffixes == ROWS and _names_data_set(path):
        from cpo_ray.data.hub import fetch_rows

        return [str(fetch_rows(path))]
    with _told(path):
        parts = _list_remote(path, suffixes) if "://" in path else _list_local(path, suffixes)
    if not parts:
        raise DataError(
            f"data.path: {path} holds no file for source {source}: one ending in {', '.join(suffixes)} is needed"
        )
    return parts


def fingerprint(path: str, source: str) -> list[str | None]:
    """What stands for the parts' content, in order: sha256 of a local file, of what the store says about a remote one.

    None stands for a missing local file.
    """
    return [_fingerprint(part) for part in list_parts(path, source)]


@contextlib.contextmanager
def open_part(part: str, hint: str = "") -> Iterator[IO[bytes]]:
    """Open for reading bytes. DataError, also for what reading within meets: no such file, no permission, a lost connection.

    hint: what to do where the file is missing.
    """
    with _told(part, hint), _open(part) as file:
        yield file


def part_bytes(part: str, hint: str = "") -> int:
    """Size of a part as it is stored; 0 where the store does not tell. DataError as `open_part` has it."""
    with _told(part, hint):
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
    place = Path(path).expanduser()
    if place.is_dir():
        return [str(file) for file in sorted(place.iterdir()) if file.is_file() and _is_part(file.name, suffixes)]
    if glob.has_magic(path) and not place.exists():
        return [file for file in sorted(glob.glob(str(place))) if Path(file).is_file()]  # noqa: PTH207 - may be absolute
    return [path]


def _list_remote(url: str, suffixes: Sequence[str]) -> list[str]:
    fs, root = _file_system(url)
    if "*" in url:
        return sorted(fs.unstrip_protocol(name) for name in fs.glob(root))
    if url.endswith(tuple(suffixes)) or not fs.isdir(root):  # asking a web server for a folder fetches the whole file
        return [url]
    names = [entry["name"] for entry in fs.ls(root, detail=True) if entry["type"] == "file"]
    return sorted(fs.unstrip_protocol(name) for name in names if _is_part(name.rsplit("/", 1)[-1], suffixes))


def _is_part(name: str, suffixes: Sequence[str]) -> bool:
    return name.endswith(tuple(suffixes)) and not name.startswith(".")


def _file_system(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    return cast("tuple[Any, str]", url_to_fs(url))


def _fingerprint(part: str) -> str | None:
    with _told(part):
        if "://" in part:
            fs, root = _file_system(part)
            about = sorted(fs.info(root).items())  # size and, by store, ETag, modification time, commit
            return hashlib.sha256(str(about).encode()).hexdigest()
        place = Path(part).expanduser()
        if not place.is_file():
            return None
        with place.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _told(part: str, hint: str = "") -> Iterator[None]:
    """Turn what a file system raises into a DataError that says what to do."""
    try:
        yield
    except FileNotFoundError as error:
        advice = (hint or "Name a file, a folder or a URL with --set data.path=...") + _hub_advice(part)
        cause = f" ({error.__cause__})" if error.__cause__ else ""  # fsspec: what the web server answered
        raise DataError(f"no data file {part}{cause}. {advice}") from None
    except ImportError as error:  # fsspec: the package of this kind of URL
        raise DataError(f"data.path: {part} needs a package that is not installed: {error}") from None
    except _unreadable(part) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{part} cannot be read: {reason}. Name another file with --set data.path=FILE.") from None
    except ValueError as error:
        if not str(error).startswith("Protocol not known"):
            raise
        raise DataError(f"data.path: {part}: {error}") from None


def _unreadable(part: str) -> tuple[type[Exception], ...]:
    """What is raised for a file that cannot be read; from a web server or the hub also what fsspec lets through."""
    if part.startswith(("http://", "https://")):
        from aiohttp import ClientError

        return (OSError, ClientError)
    if part.startswith("hf://"):
        from httpx2 import HTTPError

        return (OSError, HTTPError)
    return (OSError,)


def _names_data_set(path: str) -> bool:
    """Whether it is `owner/name` and nothing here is called so."""
    return bool(HUB_ID.fullmatch(path)) and not path.endswith(sum(SUFFIXES.values(), ())) and not Path(path).exists()


def _hub_advice(part: str) -> str:
    if not _names_data_set(part):
        return ""
    return f" Of a data set on the Hugging Face hub, name the files: data.path=hf://datasets/{part}/*.txt"
