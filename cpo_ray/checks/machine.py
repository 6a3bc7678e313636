"""Is this machine ready? Each check reports what was found and, if something is wrong, the remedy.

The checks are pure functions of their arguments. `check_machine` reads those from the machine.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Literal

from rich.markup import escape
from rich.table import Table

from cpo_ray.artifacts import CHECKOUT

GIB = 2**30
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - where Ray puts its object store
REQUIREMENTS = CHECKOUT / "requirements"
PINNED = re.compile(
    r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)\s*\\?$", re.MULTILINE
)  # a line with an environment marker does not match

CheckStatus = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """The result of one check: a line of the table."""

    name: str
    status: CheckStatus
    seen: str
    remedy: str = ""


def check_machine(runs: Path) -> list[Check]:
    """Check this machine. runs: the folder for runs; it need not exist yet."""
    installed = {_normalize(d.metadata["Name"]): d.version for d in distributions()}
    existing = next(folder for folder in (runs.absolute(), *runs.absolute().parents) if folder.is_dir())
    headers = Path(sysconfig.get_paths()["include"], "Python.h")
    environment = dict(os.environ)
    return [
        check_python(sys.version_info[:3]),
        check_packages(installed, _read_lock(installed)),
        check_torch(installed.get("torch"), _read_pins().get("torch")),
        check_gpus(_list_gpus(), installed.get("torch", "")),
        check_efa(sorted(path.name for path in Path("/sys/class/infiniband").glob("*"))),
        check_compiler(shutil.which("g++"), _find_ninja(), headers.is_file()),
        check_tool("make", shutil.which("make"), "install make", "warn"),
        check_token(environment, Path.home()),
        check_disk(existing, shutil.disk_usage(existing).free, os.access(existing, os.W_OK)),
        check_shared_memory(_size_of(Path(SHARED_MEMORY))),
        check_memory(_available_memory()),
        check_browser(next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)),
    ]


def check_python(version: tuple[int, ...]) -> Check:
    """The locks are resolved only for Python 3.11."""
    seen = ".".join(map(str, version))
    if version[:2] == (3, 11):
        return Check("Python", "ok", seen)
    return Check("Python", "fail", seen, "install Python 3.11, then make clean install PYTHON=/path/to/python3.11")


def check_packages(installed: dict[str, str], lock: dict[str, str] | None) -> Check:
    """Every package has the version of the lock. lock: None outside a checkout."""
    if lock is None:
        return Check(
            "packages", "warn", "no lock found", "run from a checkout of the repository to compare with its lock"
        )
    wrong = [
        f"{name} {installed.get(name, 'missing')} (lock: {version})"
        for name, version in sorted(lock.items())
        if installed.get(name) != version
    ]
    if not wrong:
        return Check("packages", "ok", f"all {len(lock)} as in the lock")
    more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
    return Check("packages", "fail", ", ".join(wrong[:5]) + more, "make install")


def check_torch(version: str | None, wanted: str | None) -> Check:
    """On a CPU machine PyTorch is installed in a separate step, so it is not in cpu.lock."""
    if version is not None and version.partition("+")[0] == (wanted or version.partition("+")[0]):
        return Check("PyTorch", "ok", version)
    return Check("PyTorch", "fail", version or "missing", f"make install (it installs {wanted or 'PyTorch'})")


def check_gpus(listing: list[str], torch_version: str) -> Check:
    """GPUs as nvidia-smi lists them, and a PyTorch that can use them."""
    if not listing:
        return Check("GPUs", "ok", "none: everything runs on the CPU, at the demo's sizes")
    if torch_version.endswith("+cpu"):
        return Check("GPUs", "warn", f"{len(listing)}, but PyTorch is the CPU build", "make install GPU=1")
    return Check("GPUs", "ok", "; ".join(listing))


def check_efa(devices: list[str]) -> Check:
    """EFA is only useful for several GPU machines on AWS."""
    efa = [name for name in devices if "efa" in name]
    if efa:
        return Check("EFA", "ok", ", ".join(efa))
    return Check("EFA", "ok", "none (only useful for several GPU machines on AWS)")


def check_compiler(compiler: str | None, ninja: str | None, headers: bool) -> Check:
    """DeepSpeed builds one small C++ extension at first use."""
    missing = [
        what
        for what, found in (("g++", compiler), ("ninja", ninja), ("python3.11-dev (Python.h)", headers))
        if not found
    ]
    if missing:
        return Check("C++ compiler", "fail", f"missing: {', '.join(missing)}", f"install {' and '.join(missing)}")
    return Check("C++ compiler", "ok", f"{compiler}, {ninja}")


def check_tool(name: str, path: str | None, remedy: str, without: CheckStatus) -> Check:
    """A program on PATH."""
    return Check(name, "ok", path) if path else Check(name, without, "missing", remedy)


def check_token(environment: dict[str, str], home: Path) -> Check:
    """How Ray will authenticate: RAY_AUTH_MODE, then RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token."""
    name = "Ray token"
    if environment.get("RAY_AUTH_MODE", "token").lower() != "token":
        return Check(
            name,
            "warn",
            "RAY_AUTH_MODE turns it off",
            "unset RAY_AUTH_MODE: otherwise anyone who reaches Ray can run code",
        )
    if environment.get("RAY_AUTH_TOKEN"):
        return Check(name, "ok", "in RAY_AUTH_TOKEN")
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named) if named else home / ".ray" / "auth_token"
    if file.is_file():
        if file.stat().st_mode & 0o077:
            return Check(name, "warn", f"{file} can be read by others", f"chmod 600 {file}")
        return Check(name, "ok", str(file))
    if named:
        return Check(
            name, "fail", f"RAY_AUTH_TOKEN_PATH names {file}, which does not exist", "ray get-auth-token --generate"
        )
    if not os.access(home, os.W_OK):
        return Check(name, "fail", f"Ray cannot write one to {home}", "set RAY_AUTH_TOKEN_PATH to a file of yours")
    return Check(
        name, "ok", "none yet: Ray makes one for a local cluster; to join a cluster, ray get-auth-token --generate"
    )


def check_disk(folder: Path, free: int, writable: bool) -> Check:
    """Free space for runs. The demo writes well under 1 GiB; a 3 B-parameter run about 100 GiB of checkpoints."""
    seen = f"{free / GIB:.1f} GiB free at {folder}"
    if not writable:
        return Check("disk", "fail", f"{folder} cannot be written to", "choose another --run-dir")
    if free < 2 * GIB:
        return Check("disk", "fail", seen, "free some, or put runs elsewhere with --run-dir")
    return Check(
        "disk", "warn" if free < 10 * GIB else "ok", seen, "enough for the demo only" if free < 10 * GIB else ""
    )


def check_shared_memory(size: int | None) -> Check:
    """Ray keeps its object store in /dev/shm."""
    if size is None:
        return Check(SHARED_MEMORY, "warn", "missing", "Ray falls back to the disk, which is slow: mount a tmpfs there")
    if size < 2 * GIB:
        remedy = "in a container: --shm-size=4g; otherwise lower cluster.object_store_gib"
        return Check(SHARED_MEMORY, "warn", f"{size / GIB:.1f} GiB", remedy)
    return Check(SHARED_MEMORY, "ok", f"{size / GIB:.1f} GiB")


def check_memory(available: int | None) -> Check:
    """The demo uses less than 16 GiB."""
    if available is None:
        return Check("memory", "warn", "unknown (no /proc/meminfo)", "the demo needs 16 GiB")
    seen = f"{available / GIB:.1f} GiB available"
    if available < 8 * GIB:
        return Check("memory", "fail", seen, "close other programs: the demo needs up to 16 GiB")
    return Check(
        "memory", "warn" if available < 16 * GIB else "ok", seen, "tight for the demo" if available < 16 * GIB else ""
    )


def check_browser(path: str | None) -> Check:
    """Only a test opens the report in a browser."""
    return Check("chromium", "ok", path or "none (optional: one test opens the report in it)")


def render_checks(checks: list[Check]) -> Table:
    """The table that `cpo-ray doctor` prints."""
    table = Table(box=None, pad_edge=False)
    for heading in ("check", "", "seen", "what to do"):
        table.add_column(heading, no_wrap=heading in ("check", ""))
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    for check in checks:
        status = f"[{colours[check.status]}]{check.status}[/]"
        table.add_row(escape(check.name), status, escape(check.seen), escape(check.remedy))
    return table


def parse_lock(text: str) -> dict[str, str]:
    """Package -> version, for the lines without an environment marker."""
    return {_normalize(name): version for name, version in PINNED.findall(text)}


def _size_of(folder: Path) -> int | None:
    return shutil.disk_usage(folder).total if folder.is_dir() else None


def _read_lock(installed: dict[str, str]) -> dict[str, str] | None:
    file = REQUIREMENTS / ("gpu.lock" if "vllm" in installed else "cpu.lock")
    return parse_lock(file.read_text(encoding="utf-8")) if file.is_file() else None


def _read_pins() -> dict[str, str]:
    file = REQUIREMENTS / "base.in"
    return parse_lock(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _list_gpus() -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)  # noqa: S603 - a fixed command
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()] if answer.returncode == 0 else []


def _find_ninja() -> str | None:
    local = Path(sys.executable).parent / "ninja"
    return str(local) if local.is_file() else shutil.which("ninja")


def _available_memory() -> int | None:
    file = Path("/proc/meminfo")
    found = re.search(r"^MemAvailable:\s+(\d+) kB", file.read_text(), re.MULTILINE) if file.is_file() else None
    return int(found[1]) * 1024 if found else None
