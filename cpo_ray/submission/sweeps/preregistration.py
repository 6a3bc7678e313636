"""The preregistration of a sweep: seeds, arms and analysis, fixed in a commit before the first run starts."""

import hashlib
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cpo_ray.artifacts import canonical, write_json
from cpo_ray.config.loading import read_tree
from cpo_ray.errors import ConfigError, RunMismatchError
from cpo_ray.run_directory import flatten
from cpo_ray.submission.sweeps.grid import Sweep

REGISTERED = "preregistration.json"  # in the sweep's directory: what was registered when its first run started
MOST_DIFFERENCES = 20


@dataclass(frozen=True)
class Registration:
    """What is registered: the parsed preregistration, the sweep's file and its base, and the commit that last changed it."""

    content: Mapping[str, Any]
    commit: str

    @property
    def hash(self) -> str:
        """Hash of the content. Comments and the order of keys do not count."""
        return hashlib.sha256(canonical(self.content).encode()).hexdigest()[:16]


def register(sweep: Sweep, root: Path, *, dry_run: bool = False) -> Registration | None:
    """Check a sweep's preregistration, record it when the sweep first starts, and return it; None if the sweep names none.

    dry_run: check only. Raises ConfigError if the preregistration is not committed, if its seeds and arms are not the sweep's,
    or if a seed is also one of its `tuning_seeds`; RunMismatchError, with what differs, if the sweep was started under another.
    """
    if sweep.file.preregistration is None:
        return None
    file = sweep.path.parent / sweep.file.preregistration
    registered = _read(file)
    _check_seeds(file, registered, sweep)
    _check_arms(file, registered, sweep)
    _refuse_uncommitted(file, sweep)
    base = read_tree(sweep.path.parent / sweep.file.base)
    content = {"preregistration": registered, "sweep": sweep.file.model_dump(mode="json"), "base": base}
    registration = Registration(json.loads(canonical(content)), _last_commit(file))
    recorded = root / REGISTERED
    if recorded.is_file():
        _refuse_another(root, json.loads(recorded.read_text(encoding="utf-8")), registration, file)
    elif not dry_run:
        write_json(
            recorded, {"hash": registration.hash, "commit": registration.commit, "content": registration.content}
        )
    return registration


def revision(folder: Path, registration: Registration | None) -> dict[str, Any]:
    """The commit of the checkout that `folder` is in, whether tracked files were modified, and the registration.

    The commit is None outside of a git checkout.
    """
    found: dict[str, Any] = {"commit": None, "modified": None}
    head = _git(folder, "rev-parse", "HEAD")
    if head is not None:
        changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
        found = {"commit": head, "modified": bool(changes)}
    if registration is not None:
        found |= {"preregistration": registration.hash, "preregistration_commit": registration.commit}
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no preregistration {file}: write it and commit it before the first run") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not YAML: {error}") from None
    for key in ("seeds", "tuning_seeds", "arms"):
        if not isinstance(tree, dict) or not isinstance(tree.get(key), list | dict):
            raise ConfigError(f"{file}: `{key}` is missing: a preregistration lists seeds, tuning_seeds and arms")
    return tree


def _check_seeds(file: Path, registered: Mapping[str, Any], sweep: Sweep) -> None:
    both = sorted(set(registered["seeds"]) & set(registered["tuning_seeds"]))
    if both:
        raise ConfigError(
            f"{file}: seed {both[0]} is in seeds and in tuning_seeds: a result on a seed that settings were chosen on proves "
            "nothing. Choose another seed"
        )
    if list(registered["seeds"]) != list(sweep.file.seeds):
        raise ConfigError(
            f"{sweep.path}: seeds {list(sweep.file.seeds)} are not those of {file}, {list(registered['seeds'])}"
        )


def _check_arms(file: Path, registered: Mapping[str, Any], sweep: Sweep) -> None:
    ours, theirs = set(sweep.arms), set(registered["arms"])
    if ours != theirs:
        odd = min(ours ^ theirs)
        where = f"in {sweep.path} and not in {file}" if odd in ours else f"in {file} and not in {sweep.path}"
        raise ConfigError(f"arm {odd} is {where}: both must name the same arms")


def _refuse_uncommitted(file: Path, sweep: Sweep) -> None:
    if _git(file.parent, "rev-parse", "HEAD") is None:
        raise ConfigError(f"{file} is in no git checkout with a commit: a preregistration counts from its commit on")
    for path in (file, *sweep.config_files):
        if _git(path.parent, "ls-files", "--error-unmatch", "--", path.name) is None:
            raise ConfigError(f"{path} is not committed: commit it, and what it registers, before the first run")
        if _git(path.parent, "status", "--porcelain", "--", path.name):
            raise ConfigError(f"{path} was changed since its last commit: commit the change, or restore the file")


def _last_commit(file: Path) -> str:
    """The commit that last changed the file: an ancestor of HEAD."""
    return _git(file.parent, "log", "-1", "--format=%H", "--", file.name) or ""


def _refuse_another(root: Path, first: Mapping[str, Any], registration: Registration, file: Path) -> None:
    """Raise RunMismatchError unless the sweep was started under this registration. first: as it was recorded then."""
    before, after = flatten(first["content"]), flatten(registration.content)
    differing = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    if differing:
        lines = [f"  {key}: {before.get(key)!r} -> {after.get(key)!r}" for key in differing[:MOST_DIFFERENCES]]
        lines += [f"  and {len(differing) - MOST_DIFFERENCES} more"] if len(differing) > MOST_DIFFERENCES else []
        raise RunMismatchError(
            f"{root} was started under another preregistration ({first['hash']}, now {registration.hash}):\n"
            + "\n".join(lines)
            + "\nRestore the files, or give another --run-dir: that is another study, and must be reported as one."
        )
    if _git(file.parent, "merge-base", "--is-ancestor", first["commit"], "HEAD") is None:
        raise RunMismatchError(
            f"{root} was started under the preregistration of commit {first['commit'][:12]}, which is no ancestor of HEAD: "
            "the history was rewritten. Check out a commit that contains it"
        )


def _git(folder: Path, *words: str) -> str | None:
    """The output of a git command in `folder`; None if it fails. Raises ConfigError without git."""
    try:
        command = ["git", *words]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603 - no shell
    except FileNotFoundError as error:
        raise ConfigError(f"git or the folder {folder} is missing ({error}): install git") from None
    return done.stdout.strip() if done.returncode == 0 else None
