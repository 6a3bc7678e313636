"""Hashes of values, files and directories, by which inputs and contents of artifacts are compared."""

import hashlib
import json
from pathlib import Path
from typing import Any

WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx"})
"""Endings of files in a model's directory that its tokenizer does not read."""


def canonical(value: Any) -> str:
    """JSON with exactly one spelling per value."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def content_key(content: Any) -> str:
    """SHA-256 of a JSON value, hexadecimal."""
    return hashlib.sha256(canonical(content).encode()).hexdigest()


def hash_file(file: Path) -> str:
    """SHA-256 of the content, in hexadecimal."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def hash_directories(*, without: frozenset[str] = frozenset(), **paths: str | None) -> dict[str, str]:
    """Name -> hash of the content, for each path that is a directory on this machine, for an artifact's inputs.

    Hidden files and Markdown, which no loader reads, do not count, nor do files with the endings `without`. Other paths, such
    as hub ids, are left out.
    """
    ignored = without | {".md"}
    return {name: _hash_directory(Path(path), ignored) for name, path in paths.items() if path and Path(path).is_dir()}


def _hash_directory(folder: Path, ignored: frozenset[str]) -> str:
    files = {
        file.relative_to(folder): file for file in folder.rglob("*") if file.is_file() and file.suffix not in ignored
    }
    seen = {name: file for name, file in files.items() if not any(part.startswith(".") for part in name.parts)}
    hashes = {name.as_posix(): hash_file(file) for name, file in seen.items()}
    return hashlib.sha256(canonical(hashes).encode()).hexdigest()
