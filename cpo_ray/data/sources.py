"""The files that `data.path` names, called parts: local files, fsspec URLs, or a dataset on the Hugging Face hub."""

import contextlib
import glob
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, cast

from cpo_ray.config import ROW_SOURCES, DataConfig, SourceConfig
from cpo_ray.errors import DataError
from cpo_ray.files.compression import conversion

COMPRESSED = ("", ".gz", ".bz2", ".xz", ".zst")


def _with_compression(*endings: str) -> tuple[str, ...]:
    return tuple(ending + compression for ending in endings for compression in COMPRESSED)


OBJECTS = (*_with_compression(".jsonl", ".ndjson"), ".parquet")
JSON = _with_compression(".json")  # read from a folder that has none of OBJECTS: beside them it is often a description
TABLES = _with_compression(".csv", ".tsv")  # read from a folder that has none of OBJECTS and JSON
ROWS = OBJECTS + JSON + TABLES
SUFFIXES = dict.fromkeys(ROW_SOURCES, ROWS) | {
    "wikidump": (".xml", *COMPRESSED[1:]),
    "text": _with_compression(".txt", ".tokens", ".raw"),
}
"""Endings of the files that are read from a folder, by source. Hidden files and subfolders are not read."""
INDEX = re.compile(r"-multistream-index\d*\.txt[^/]*$")

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


class HubPart(NamedTuple):
    """What is read of a dataset on the hub; None is the hub's default, and the split `train`."""

    subset: str | None = None
    split: str | None = None
    revision: str | None = None


DEFAULT_PART = HubPart()


def hub_part(source: SourceConfig | DataConfig) -> HubPart:
    """What a source, or the only one of the data, reads of a dataset on the hub."""
    return HubPart(source.subset, source.split, source.revision)


@dataclass(frozen=True)
class Listing:
    """The files that a path names."""

    parts: list[str]
    passed_over: list[str]  # messages: a file that is not read, and why


def list_parts(path: str, source: str, hub: HubPart = DEFAULT_PART) -> list[str]:
    """The parts of `list_files`."""
    return list_files(path, source, hub).parts


def list_files(path: str, source: str, hub: HubPart = DEFAULT_PART) -> Listing:
    """The files that `path` names, sorted by name: the file itself, or those of a folder or pattern.

    Indexes of multistream dumps are passed over, and in a folder: compressed copies of files that are there too, `.json` and
    `.csv` beside other files with rows, and `.7z`. A dataset on the hub is downloaded and has one part. Raises DataError if a
    folder or pattern has no files, or if a URL cannot be listed. A missing file is reported later, by `open_part`.
    """
    suffixes = SUFFIXES[source]
    if suffixes == ROWS and is_hub_dataset(path):
        from cpo_ray.data.hub import fetch_rows

        return Listing([str(fetch_rows(path, *hub))], [])
    if hub != DEFAULT_PART:
        key, value = next((key, value) for key, value in hub._asdict().items() if value is not None)
        raise DataError(
            f"data.{key} {value!r} is for a dataset on the Hugging Face hub, owner/name, but data.path {path} is not one: "
            f"leave out data.{key}, or correct the path"
        )
    with _as_data_error(path):
        files, is_folder = _list_remote(path, suffixes) if "://" in path else _list_local(path)
    listing = _select(files, suffixes if is_folder else None)
    if not listing.parts:
        found = f" ({'; '.join(listing.passed_over)})" if listing.passed_over else ""
        raise DataError(
            f"data.path: {path} has no file for source {source}{found}: one ending in {', '.join(suffixes)} is needed"
        )
    return listing


def _select(files: Sequence[str], suffixes: Sequence[str] | None) -> Listing:
    """Which files are read. suffixes: those of a folder's files; None for a file or a pattern."""
    passed_over = []
    if suffixes is not None:
        passed_over = [
            f"{file} is passed over: 7z is not read; convert it: {conversion(file, '7z')}"
            for file in files
            if file.endswith(".7z")
        ]
        files = [file for file in files if _is_part(_name(file), suffixes)]
    parts = []
    has_objects = any(file.endswith(OBJECTS) for file in files)
    has_rows = has_objects or any(file.endswith(JSON) for file in files)
    for file in files:
        plain = file.removesuffix(PurePosixPath(file).suffix)
        if INDEX.search(file):
            passed_over.append(f"{file} is passed over: the index of a multistream dump")
        elif suffixes is not None and file.endswith(COMPRESSED[1:]) and plain in files:
            passed_over.append(f"{file} is passed over: {_name(plain)} is read")
        elif suffixes is not None and file.endswith(JSON) and has_objects:
            passed_over.append(f"{file} is passed over beside files of rows (.jsonl, .ndjson, .parquet)")
        elif suffixes is not None and file.endswith(TABLES) and has_rows:
            passed_over.append(f"{file} is passed over beside files of rows (.jsonl, .ndjson, .parquet, .json)")
        else:
            parts.append(file)
    return Listing(parts, passed_over)


def fingerprint(path: str, source: str, hub: HubPart = DEFAULT_PART) -> list[str | None]:
    """A hash of each part's content, in order: of the bytes of a local file, of the store's metadata for a remote one.

    None for a missing local file.
    """
    return [_fingerprint(part) for part in list_parts(path, source, hub)]


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


def _list_local(path: str) -> tuple[list[str], bool]:
    """(the files, whether they are a folder's)."""
    local = Path(path).expanduser()
    if local.is_dir():
        return [str(file) for file in sorted(local.iterdir()) if file.is_file()], True
    if glob.has_magic(path) and not local.exists():
        return [file for file in sorted(glob.glob(str(local))) if Path(file).is_file()], False  # noqa: PTH207 - may be absolute
    return [path], False


def _list_remote(url: str, suffixes: Sequence[str]) -> tuple[list[str], bool]:
    fs, root = _file_system(url)
    if "*" in url:
        return sorted(fs.unstrip_protocol(name) for name in fs.glob(root)), False
    if url.endswith(tuple(suffixes)) or not fs.isdir(root):  # isdir on a web server downloads the whole file
        return [url], False
    names = [entry["name"] for entry in fs.ls(root, detail=True) if entry["type"] == "file"]
    return sorted(fs.unstrip_protocol(name) for name in names), True


def _name(file: str) -> str:
    return file.rsplit("/", 1)[-1]


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


def is_hub_dataset(path: str) -> bool:
    """Whether `path` has the form `owner/name` and no local file or folder has that name."""
    return bool(HUB_ID.fullmatch(path)) and not path.endswith(sum(SUFFIXES.values(), ())) and not Path(path).exists()


def _hub_advice(part: str) -> str:
    if not is_hub_dataset(part):
        return ""
    return f" For a dataset on the Hugging Face hub, name its files: data.path=hf://datasets/{part}/*.txt"
