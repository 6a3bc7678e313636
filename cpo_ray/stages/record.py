"""A stage is one record: what it writes, what each output is made from, and which configuration keys count.

The record drives what the pipeline requires before a stage, the inputs in each artifact's manifest, what the command line
prints, and what the report calls stale. Adding a stage means one record and one function.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from cpo_ray.artifacts import Artifact, Builder, find_artifact
from cpo_ray.config import RunConfig, stage_inputs
from cpo_ray.errors import ArtifactError
from cpo_ray.run_directory import Run

Condition = Callable[[RunConfig], bool]


def always(_: RunConfig) -> bool:
    """The condition of what every configuration has."""
    return True


@dataclass(frozen=True)
class Output:
    """One artifact, or one per model: its name below the run directory, and everything that it depends on.

    reads: names of artifacts, or another output (all artifacts of it). keys: dotted configuration keys; keys below them
    that are execution only do not count, nor those in `ignored`, nor a section that is null. models: fills `{model}` in the
    name and in `reads`. previous: of such a model, fills `{previous}` in `reads`. when: the configurations that have this
    output.
    """

    name: str
    reads: tuple["str | Output | Read", ...] = ()
    keys: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    models: Callable[[RunConfig], Iterable[str]] | None = None
    previous: Callable[[str], str] = str
    when: Condition = always

    def names(self, config: RunConfig) -> tuple[str, ...]:
        """The artifacts that this output is under a configuration."""
        if not self.when(config):
            return ()
        return (self.name,) if self.models is None else tuple(map(self.named, self.models(config)))

    def named(self, model: str) -> str:
        """The artifact of one model."""
        return self.name.format(model=model)

    @property
    def pattern(self) -> str:
        """The name for people, e.g. `generations/*`."""
        return _readable(self.name)


@dataclass(frozen=True)
class Read:
    """A read that not every configuration has (`when`), that may be missing (`optional`), or of one folder (`part`) alone.

    An output that reads a part depends on the files in it, not on what the rest of that artifact was made from.
    """

    source: str | Output
    when: Condition = always
    optional: bool = False
    part: str | None = None


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline. `about` is for people; `check` raises before the first stage starts if this one cannot run."""

    name: str
    about: str
    outputs: tuple[Output, ...]
    perform: Callable[["StageRun"], None]
    check: Callable[[RunConfig], None] = field(default=lambda _: None)
    places: tuple[str, ...] = ()  # files that it writes outside its artifacts

    def under(self, config: RunConfig) -> "Stage":
        """This stage without the outputs and reads that a configuration does not have."""
        outputs = [
            replace(output, reads=tuple(read for read in output.reads if _applies(read, config)))
            for output in self.outputs
            if output.names(config)
        ]
        return replace(self, outputs=tuple(outputs))

    @property
    def reads(self) -> tuple[str, ...]:
        """What it reads of earlier stages, for people."""
        own = {output.pattern for output in self.outputs}
        reads = (_pattern(read) for output in self.outputs for read in output.reads)
        return tuple(dict.fromkeys(name for name in reads if name not in own))

    @property
    def writes(self) -> tuple[str, ...]:
        """What it writes, for people."""
        return (*dict.fromkeys(output.pattern for output in self.outputs), *self.places)


@dataclass(frozen=True)
class Recipe:
    """An output under one configuration: the artifacts that it reads, and the values of the keys that count.

    parts: artifact -> the folder of it that is read, for those that are not read whole.
    """

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    parts: Mapping[str, str]
    values: Mapping[str, Any]


def recipes(stage: Stage, config: RunConfig) -> dict[str, Recipe]:
    """Artifact name -> recipe, for everything that the stage writes under this configuration."""
    found = {}
    for output in stage.outputs:
        if output.when(config):
            for model in [""] if output.models is None else output.models(config):
                recipe = _recipe(output, config, model)
                found[recipe.name] = recipe
    return found


class StageRun:
    """A stage at work in a run. It can read and write only what its record names."""

    def __init__(self, stage: Stage, run: Run, writers: Mapping[str, str]) -> None:
        """writers: artifact name -> the stage that writes it, for the message about a missing one."""
        self.stage, self.run, self.writers = stage, run, writers
        self.config, self.root, self.ray = run.config, run.root, run.ray

    @cached_property
    def recipes(self) -> dict[str, Recipe]:
        """What this stage writes."""
        return recipes(self.stage, self.config)

    def read(self, name: str) -> Artifact:
        """An artifact that this stage reads. Raises ArtifactError naming the stage to run if it is missing."""
        if not any(name in (*recipe.required, *recipe.optional) for recipe in self.recipes.values()):
            raise ValueError(f"stage {self.stage.name} reads {name}, which its record does not name")
        artifact = find_artifact(self.root, name)
        if artifact is None:
            raise ArtifactError(
                f"{self.root / name} is not there yet: run the stage `{self.writers.get(name, name)}` first"
            )
        return artifact

    def inputs(self, name: str, also: Mapping[str, Any] | None = None, unused: Collection[str] = ()) -> dict[str, Any]:
        """What the manifest of the output `name` records: configuration values, fingerprints of what is read, and `also`.

        also: what counts besides the run's own configuration and artifacts, e.g. hashes of files elsewhere. unused: optional
        reads that do not count even if they are there.
        """
        recipe = self.recipes[name]
        artifacts = [self.read(source) for source in recipe.required]
        optional = (find_artifact(self.root, source) for source in recipe.optional if source not in unused)
        artifacts += filter(None, optional)
        reads = dict(self._fingerprint(artifact, recipe.parts.get(artifact.name)) for artifact in artifacts)
        return {"config": dict(recipe.values), "reads": reads} | ({"also": dict(also)} if also else {})

    def _fingerprint(self, artifact: Artifact, part: str | None) -> tuple[str, str]:
        """What is read of an artifact, by name, and its fingerprint. Raises ArtifactError if the part is missing."""
        if part is None:
            return artifact.name, artifact.fingerprint
        fingerprint = artifact.manifest.part_fingerprint(part)
        if fingerprint is None:
            raise ArtifactError(
                f"{artifact.path / part} is missing: an older version made {artifact.name}. Delete {artifact.path}, and run "
                f"the stage `{self.writers.get(artifact.name, artifact.name)}` again"
            )
        return f"{artifact.name}/{part}", fingerprint

    def make(
        self, name: str, build: Builder, also: Mapping[str, Any] | None = None, unused: Collection[str] = ()
    ) -> Artifact:
        """Build the output `name`, or reuse it if it was made from the same inputs. also, unused: see `inputs`."""
        return self.run.make(name, self.inputs(name, also, unused), build)

    def is_current(self, name: str, also: Mapping[str, Any] | None = None) -> bool:
        """Whether `make` would build nothing: the output is there, in this run or in the store that it shares."""
        return self.run.is_available(name, self.inputs(name, also))

    def find_similar(self, name: str, also: Mapping[str, Any] | None, *ignoring: str) -> Artifact | None:
        """A finished output whose inputs differ in the dotted keys `ignoring` alone."""
        return self.run.find_similar(name, self.inputs(name, also), *ignoring)


def _recipe(output: Output, config: RunConfig, model: str) -> Recipe:
    required: list[str] = []
    optional: list[str] = []
    parts: dict[str, str] = {}
    for read in output.reads:
        entry = read if isinstance(read, Read) else Read(read)
        if entry.when(config):
            source = entry.source
            filled = {"model": model, "previous": output.previous(model)}
            names = source.names(config) if isinstance(source, Output) else (source.format(**filled),)
            (optional if entry.optional else required).extend(names)
            if entry.part is not None:
                parts |= dict.fromkeys(names, entry.part)
    selected = {key: _select(config, key) for key in output.keys}
    # A section that a configuration does not have is left out, so what was made before there was such a section stays current.
    given = {key: value for key, value in selected.items() if value is not None or "." in key}
    values = {key: _without(value, key, output.ignored) for key, value in given.items()}
    return Recipe(output.named(model), tuple(required), tuple(optional), parts, values)


def _select(config: RunConfig, key: str) -> Any:
    """The value at a dotted key, without execution-only keys; `*` is the whole configuration."""
    value: Any = stage_inputs(config)
    for part in () if key == "*" else key.split("."):
        value = value[part]
    return value


def _without(value: Any, key: str, ignored: Iterable[str]) -> Any:
    """A section without the dotted keys in `ignored`."""
    left_out = {name.removeprefix(f"{key}.") for name in ignored if name.startswith(f"{key}.")}
    return {name: item for name, item in value.items() if name not in left_out} if left_out else value


def _applies(read: "str | Output | Read", config: RunConfig) -> bool:
    if isinstance(read, Read):
        return read.when(config) and _applies(read.source, config)
    return isinstance(read, str) or bool(read.names(config))


def _pattern(read: "str | Output | Read") -> str:
    source = read.source if isinstance(read, Read) else read
    return source.pattern if isinstance(source, Output) else _readable(source)


def _readable(name: str) -> str:
    return name.replace("{model}", "*").replace("{previous}", "*")
