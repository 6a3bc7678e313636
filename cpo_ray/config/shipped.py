"""The shipped configurations: `configs/` of a checkout, which an installed package has inside."""

import itertools
from pathlib import Path

import yaml

from cpo_ray.config.loading import EXTENDS, read_tree
from cpo_ray.config.spelling import did_you_mean
from cpo_ray.errors import ConfigError

# A symbolic link to configs/ in a checkout; a wheel has the files.
CONFIGS = Path(__file__).parent / "shipped_files"


def shipped_configs() -> dict[str, Path]:
    """Name -> file; `folder/name` for one in a folder. Raises ConfigError if the installation is incomplete."""
    folder = CONFIGS.resolve()
    paths = sorted(folder.rglob("*.yaml"), key=lambda path: (path.parent != folder, path))
    found = {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}
    if not found:
        raise ConfigError(f"no shipped configurations at {CONFIGS}: this installation is incomplete, install it again")
    return found


def find_config(given: Path) -> Path:
    """A file that exists, or the shipped configuration of this name: `demo`, `paper/table2`. Raises ConfigError."""
    if given.is_file() or given.suffix:
        return given
    shipped = shipped_configs()
    if given.as_posix() not in shipped:
        raise ConfigError(
            f"there is no file {given}, and no shipped configuration of this name"
            f"{did_you_mean(given.as_posix(), shipped, '{!r}')} `cpo-ray configs` lists them"
        )
    return shipped[given.as_posix()]


def opening(text: str) -> str:
    """The first paragraph of a file's opening comment."""
    lines = itertools.takewhile(lambda line: line.startswith("# "), text.splitlines())
    return " ".join(line.removeprefix("# ").strip() for line in lines).removesuffix(":")


def shipped_text(name: str) -> str:
    """The text of a shipped configuration. One that extends another has the extended keys filled in.

    Raises ConfigError if the name is unknown.
    """
    shipped = shipped_configs()
    source = shipped.get(name.removesuffix(".yaml"))
    if source is None:
        raise ConfigError(
            f"no shipped configuration {name!r}{did_you_mean(name, shipped, '{!r}')} `cpo-ray configs` lists them"
        )
    text = source.read_text(encoding="utf-8")
    if EXTENDS in yaml.safe_load(text):
        text = _heading(text) + yaml.safe_dump(read_tree(source), sort_keys=False, allow_unicode=True, width=120)
    return text


def copy_shipped(name: str, to: Path | None) -> Path:
    """Copy a configuration to `to` (default: its own name, in this folder) and return that path.

    Raises ConfigError if the name is unknown or the target exists.
    """
    text = shipped_text(name)
    target = to or Path(f"{Path(name).name.removesuffix('.yaml')}.yaml")
    if target.exists():
        raise ConfigError(f"{target} exists already: choose another file")
    target.write_text(text, encoding="utf-8")
    return target


def _heading(text: str) -> str:
    """A file's opening comment."""
    return "".join(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))
