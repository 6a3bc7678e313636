"""The configurations in the source checkout."""

import difflib
import itertools
from collections.abc import Iterable
from pathlib import Path

import yaml

import cpo_ray
from cpo_ray.config.loading import EXTENDS, read_tree
from cpo_ray.errors import ConfigError

CONFIGS = Path(cpo_ray.__file__).parent.parent / "configs"


def shipped_configs() -> dict[str, Path]:
    """Name -> file; `folder/name` for one in a folder. Raises ConfigError if this package is not in a checkout."""
    paths = sorted(CONFIGS.rglob("*.yaml"), key=lambda path: (path.parent != CONFIGS, path))
    found = {path.relative_to(CONFIGS).with_suffix("").as_posix(): path for path in paths}
    if not found:
        raise ConfigError(
            f"no shipped configurations at {CONFIGS}: they are in the source checkout, not in an installed "
            "package. Clone the repository and run `make install`."
        )
    return found


def opening(text: str) -> str:
    """The first paragraph of a file's opening comment."""
    lines = itertools.takewhile(lambda line: line.startswith("# "), text.splitlines())
    return " ".join(line.removeprefix("# ").strip() for line in lines).removesuffix(":")


def copy_shipped(name: str, to: Path | None) -> Path:
    """Copy a configuration to `to` (default: its own name, in this folder) and return that path.

    A file that extends another is written with the extended keys filled in. Raises ConfigError if the name is unknown or
    the target exists.
    """
    shipped = shipped_configs()
    source = shipped.get(name.removesuffix(".yaml"))
    if source is None:
        raise ConfigError(f"no shipped configuration {name!r}; did you mean {nearest(name, shipped)!r}?")
    target = to or Path(source.name)
    if target.exists():
        raise ConfigError(f"{target} exists already: choose another file")
    text = source.read_text(encoding="utf-8")
    if EXTENDS in yaml.safe_load(text):
        text = _heading(text) + yaml.safe_dump(read_tree(source), sort_keys=False, allow_unicode=True, width=120)
    target.write_text(text, encoding="utf-8")
    return target


def _heading(text: str) -> str:
    """A file's opening comment."""
    return "".join(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that is most similar to `word`."""
    return difflib.get_close_matches(word, list(known), n=1, cutoff=0.0)[0]
