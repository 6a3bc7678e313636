"""A run: one configuration, one directory, one owner at a time."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from rich.markup import escape

from cpo_ray.artifacts import (
    Artifact,
    Builder,
    canonical,
    describe_environment,
    find_artifact,
    lock_run,
    make_artifact,
    write_json,
)
from cpo_ray.artifacts.store import Store
from cpo_ray.cluster.session import LazyRay, ray_cluster
from cpo_ray.config import RunConfig, stage_inputs
from cpo_ray.config.loading import parse_config
from cpo_ray.errors import ConfigError, RunMismatchError
from cpo_ray.monitoring.console import say
from cpo_ray.monitoring.metrics_log import MetricsLog


@dataclass(frozen=True)
class Run:
    """A run that this process owns: its configuration, its directory, and Ray once a stage needs it."""

    config: RunConfig
    root: Path
    ray: LazyRay

    @cached_property
    def metrics(self) -> MetricsLog:
        """The run's metrics.jsonl."""
        return MetricsLog(self.root / "metrics.jsonl")

    @cached_property
    def store(self) -> Store | None:
        """The store of artifacts that this run shares with others, if one is configured."""
        folder = self.config.cluster.artifact_store
        return None if folder is None else Store(folder.resolve())

    def make(self, name: str, inputs: dict[str, Any], build: Builder) -> Artifact:
        """Reuse the artifact `name` if it was made from the same inputs, otherwise build it; print which, and why."""
        previous = find_artifact(self.root, name)
        shared = None if self.store is None or self.is_current(name, inputs) else self.store.find(name, inputs)
        artifact = make_artifact(self.root, name, inputs, partial(Store.copy, shared) if shared else build)
        if self.store is not None and not artifact.reused and not shared:
            self.store.add(artifact)
        if artifact.reused:
            say(
                f"  [green]reused[/] {name}: same inputs, made {artifact.manifest.created}", artifact=name, how="reused"
            )
        elif shared:
            copied = "" if Store.is_linked(shared, artifact) else "; its files were copied, without hard links"
            made = f"another run has made it, {shared.manifest.created}{copied}"
            say(f"  [green]shared[/] {name}: {made}", artifact=name, how="shared")
        else:
            why = "" if previous is None else f" again: {escape(_changes(previous.manifest.inputs, inputs))} changed"
            took = f"in {artifact.manifest.seconds:.0f} s{_brief(artifact.manifest.summary)}"
            say(f"  [green]made[/] {name}{why} {took}", artifact=name, how="made")
        for warning in artifact.manifest.summary.get("warnings", []):
            say(f"  [yellow]warning[/] {escape(warning)}")
        return artifact

    def is_current(self, name: str, inputs: dict[str, Any]) -> bool:
        """Whether this run has the artifact, made from the same inputs."""
        artifact = find_artifact(self.root, name)
        return artifact is not None and artifact.manifest.inputs == json.loads(canonical(inputs))

    def is_available(self, name: str, inputs: dict[str, Any]) -> bool:
        """Whether `make` would build nothing: this run has the artifact, or another run has added it to the store."""
        return self.is_current(name, inputs) or (self.store is not None and self.store.find(name, inputs) is not None)

    def find_similar(self, name: str, inputs: dict[str, Any], *ignoring: str) -> Artifact | None:
        """A finished artifact of this run or of the store whose inputs differ in the dotted keys `ignoring` alone."""
        own, ignored = find_artifact(self.root, name), dict.fromkeys(ignoring)
        wanted = flatten(json.loads(canonical(inputs))) | ignored
        for artifact in [*([own] if own else []), *(self.store.every(name) if self.store else [])]:
            if flatten(artifact.manifest.inputs) | ignored == wanted:
                return artifact
        return None


def run_directory(name: str, given: Path | None) -> Path:
    """The run's directory: the one given, otherwise `name` below the folder in CPO_RAY_RUNS, otherwise below `runs` here."""
    return given or Path(os.environ.get("CPO_RAY_RUNS", "runs")) / name


@contextlib.contextmanager
def open_run(config: RunConfig, root: Path, *, accept_changes: bool) -> Iterator[Run]:
    """Lock the run directory and check that it belongs to this configuration.

    Raises RunInUseError naming the owner, or RunMismatchError listing every field that differs.
    """
    root = root.resolve()  # Ray's workers have a working directory of their own
    with lock_run(root), ray_cluster(config.cluster) as ray:
        if not accept_changes:
            refuse_changes(root, config)
        write_json(root / "config.json", config.model_dump(mode="json"))
        write_json(root / "environment.json", describe_environment(config.seed))
        yield Run(config, root, ray)


def refuse_changes(root: Path, config: RunConfig) -> None:
    """Raise RunMismatchError, with every field that differs, if the run directory was made with another configuration."""
    file = root / "config.json"
    if not file.exists():
        return
    stored = json.loads(file.read_text(encoding="utf-8"))
    try:
        before = flatten(stage_inputs(parse_config(stored, str(file))))
    except ConfigError:  # written by a version with other keys: compare its values as they are
        before = flatten(stored)
    after = flatten(stage_inputs(config))
    differing = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    if differing:
        width = max(len(key) for key in differing)
        lines = [f"  {key:<{width}}  {before.get(key)!r} -> {after.get(key)!r}" for key in differing]
        raise RunMismatchError(
            f"{root} was made with another configuration:\n" + "\n".join(lines) + "\n"
            "Give another --run-dir, or --accept-changes to redo in place what these fields touch."
        )


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of a nested dict. An empty section is a value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _changes(before: dict[str, Any], after: dict[str, Any]) -> str:
    """The inputs that differ: configuration keys, artifacts, and what counts besides."""
    old, new = flatten(before), flatten(json.loads(canonical(after)))
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    keys = [key.removeprefix("config.").removeprefix("reads.").removeprefix("also.") for key in keys]
    return ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")


def _brief(summary: dict[str, Any]) -> str:
    """The summary's numbers and short words, on one line."""
    words = []
    for key, value in flatten(summary).items():
        if isinstance(value, float):
            words.append(f"{key} {value:.4g}")
        elif isinstance(value, int) and value:
            words.append(f"{key} {value:,}")
        elif isinstance(value, str) and len(value) < 24:
            words.append(f"{key} {value}")
    return escape(f": {', '.join(words[:12])}") if words else ""
