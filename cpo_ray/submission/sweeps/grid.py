"""The file of a sweep, and the runs that it describes: a base configuration, arms that change some of its keys, and seeds."""

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError

from cpo_ray.artifacts import canonical
from cpo_ray.config import RunConfig, Section, stage_inputs
from cpo_ray.config.loading import parse_config, read_tree
from cpo_ray.config.spelling import did_you_mean
from cpo_ray.errors import ConfigError

NAME = r"^[a-z0-9][a-z0-9_-]*$"
KeyValues = dict[str, Any]  # dotted key -> value
RunKey = tuple[str, int]  # arm, seed


class SweepFile(Section):
    """The keys of a sweep's file."""

    name: Annotated[str, Field(pattern=NAME)]
    """The sweep's name. Its directory is `runs/<name>`, or the one given with --run-dir."""
    base: str
    """The configuration that every run starts from, relative to this file. Its `seed` is replaced."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    """Every arm runs once per seed."""
    arms: Annotated[dict[Annotated[str, Field(pattern=NAME)], KeyValues], Field(min_length=1)]
    """Name of an arm -> dotted keys and their values, as with --set: a value replaces a whole section."""
    settings: KeyValues = Field(default={})
    """Dotted keys and values of all arms, on top of the base."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default={})
    """Dotted key -> values. Every arm runs with every combination, each as an arm of its own."""
    until: str | None = None
    """The last stage. Default: all stages."""
    preregistration: str | None = None
    """A YAML file, relative to this one, that fixes seeds, arms and analysis in a commit before the first run starts."""


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep."""

    arm: str
    seed: int
    config: RunConfig
    overrides: KeyValues
    """What it changes in the base, besides the seed."""

    @property
    def key(self) -> RunKey:
        """What identifies the run in its sweep."""
        return self.arm, self.seed

    @property
    def label(self) -> str:
        """The run in messages."""
        return f"{self.arm}, seed {self.seed}"

    def root(self, sweep_root: Path) -> Path:
        """The run's directory below that of its sweep."""
        return sweep_root / self.arm / f"seed-{self.seed}"

    @property
    def fingerprint(self) -> str:
        """Hash of every configuration value that a result depends on, the seed among them."""
        return _fingerprint(stage_inputs(self.config))

    @property
    def arm_inputs(self) -> dict[str, Any]:
        """The configuration values that results depend on and that all seeds of an arm share."""
        return {key: value for key, value in stage_inputs(self.config).items() if key not in ("name", "seed")}

    @property
    def arm_fingerprint(self) -> str:
        """Hash of `arm_inputs`."""
        return _fingerprint(self.arm_inputs)


@dataclass(frozen=True)
class Sweep:
    """A sweep's file and its runs, seed by seed: whatever is finished has every arm of the first seeds."""

    path: Path
    file: SweepFile
    runs: tuple[SweepRun, ...]

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms, those of the grid included."""
        return tuple(dict.fromkeys(run.arm for run in self.runs))

    @property
    def config_files(self) -> tuple[Path, ...]:
        """The sweep's file and the base, each with the files that it extends."""
        return (*_chain(self.path), *_chain(self.path.parent / self.file.base))

    def first_of_arm(self) -> Iterator[SweepRun]:
        """One run per arm."""
        for arm in self.arms:
            yield next(run for run in self.runs if run.arm == arm)


def load_sweep(path: Path) -> Sweep:
    """Read a sweep's file and resolve the configuration of every run.

    Raises ConfigError for an unknown key of the file or of a configuration, naming the nearest, for a value out of bounds, for
    arms that are alike, and for a seed that is named twice: before anything starts.
    """
    file = _parse_file(path)
    repeated = sorted({seed for seed in file.seeds if file.seeds.count(seed) > 1})
    if repeated:
        raise ConfigError(f"{path}: seeds: {repeated[0]} is named twice")
    base = read_tree(path.parent / file.base)
    arms = _expand(path, file)
    runs = tuple(
        SweepRun(
            arm, seed, _configure(f"{path}: arm {arm}", base, overrides, f"{file.name}-{arm}-{seed}", seed), overrides
        )
        for seed in file.seeds
        for arm, overrides in arms.items()
    )
    sweep = Sweep(path, file, runs)
    _refuse_equal_arms(sweep)
    return sweep


def select_runs(sweep: Sweep, only: Sequence[str]) -> tuple[SweepRun, ...]:
    """The runs that `--only` names: `ARM`, `SEED` or `ARM,SEED`, several times; all without it. Raises ConfigError."""
    if not only:
        return sweep.runs
    chosen: set[RunKey] = set()
    for text in only:
        words = [word.strip() for word in text.split(",")]
        seeds = [word for word in words if word.isdecimal() and word not in sweep.arms]
        arms = [word for word in words if word not in seeds]
        for arm in arms:
            if arm not in sweep.arms:
                raise ConfigError(f"--only {text}: there is no arm {arm!r}{did_you_mean(arm, sweep.arms, '{!r}')}")
        for seed in map(int, seeds):
            if seed not in sweep.file.seeds:
                raise ConfigError(f"--only {text}: {seed} is not among the seeds {list(sweep.file.seeds)}")
        wanted = itertools.product(arms or sweep.arms, map(int, seeds) if seeds else sweep.file.seeds)
        chosen.update(wanted)
    return tuple(run for run in sweep.runs if run.key in chosen)


def _parse_file(path: Path) -> SweepFile:
    try:
        return SweepFile.model_validate(read_tree(path))
    except ValidationError as error:
        lines = []
        for detail in error.errors():
            dotted, message = ".".join(map(str, detail["loc"])), detail["msg"]
            if detail["type"] == "extra_forbidden":
                message = f"unknown key of a sweep{did_you_mean(dotted, SweepFile.model_fields, '`{}`')}"
            elif detail["type"] == "missing":
                message = "this key is required"
            lines.append(f"  {dotted}: {message}")
        raise ConfigError(f"{path} does not describe a sweep:\n" + "\n".join(lines)) from None


def _chain(path: Path) -> Iterator[Path]:
    """A configuration file and the files that it extends."""
    while True:
        yield path
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "extends" not in tree:
            return
        path = path.parent / tree["extends"]


def _expand(path: Path, file: SweepFile) -> dict[str, KeyValues]:
    """Every arm with every combination of the grid -> its overrides."""
    arms: dict[str, KeyValues] = {}
    for arm, overrides in file.arms.items():
        for values in itertools.product(*file.grid.values()):
            point = dict(zip(file.grid, values, strict=True))
            name = "-".join([arm, *itertools.starmap(_point_name, point.items())])
            if name in arms:
                raise ConfigError(f"{path}: two arms of the grid would have the name {name}: rename an arm")
            both = point.keys() & overrides.keys()
            if both:
                raise ConfigError(f"{path}: arm {arm} sets {min(both)}, which the grid varies: remove one of the two")
            arms[name] = file.settings | overrides | point
    return arms


def _point_name(key: str, value: Any) -> str:
    """`beta-0.5` as a name: `beta-0_5`."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return f"{key.rpartition('.')[2]}-{re.sub(r'[^a-z0-9_-]+', '_', text.lower()).strip('_')}"


def _configure(origin: str, base: Mapping[str, Any], overrides: KeyValues, name: str, seed: int) -> RunConfig:
    tree = _copy(base)
    for dotted, value in overrides.items():
        if dotted in ("name", "seed"):
            raise ConfigError(f"{origin}: {dotted} is set by the sweep: remove it")
        *parents, leaf = dotted.split(".")
        section = tree
        for depth, parent in enumerate(parents, 1):
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise ConfigError(f"{origin}: {dotted}: {'.'.join(parents[:depth])} is a value, not a section")
        section[leaf] = _copy(value)  # a later key may be below it
    return parse_config(tree | {"name": name, "seed": seed}, origin)


def _copy(node: Any) -> Any:
    return {key: _copy(value) for key, value in node.items()} if isinstance(node, Mapping) else node


def _refuse_equal_arms(sweep: Sweep) -> None:
    seen: dict[str, str] = {}
    for run in sweep.first_of_arm():
        other = seen.setdefault(run.arm_fingerprint, run.arm)
        if other != run.arm:
            raise ConfigError(
                f"{sweep.path}: arms {other} and {run.arm} have the same configuration: remove one of them"
            )


def _fingerprint(inputs: Iterable[Any]) -> str:
    return hashlib.sha256(canonical(inputs).encode()).hexdigest()[:12]
