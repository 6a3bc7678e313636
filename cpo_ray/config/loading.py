"""Load a run's YAML file: read it and the files it extends, apply overrides, validate. Errors name the key."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cpo_ray.config import RunConfig
from cpo_ray.config.section import section_in
from cpo_ray.config.spelling import did_you_mean
from cpo_ray.errors import ConfigError

EXTENDS = "extends"
SECRET_KEY = re.compile(r"(api[_-]?key|token|password)$|secret|access[_-]?key", re.IGNORECASE)
SECRET_VALUE = re.compile(
    r"(?<![A-Za-z0-9])(sk-[A-Za-z0-9_-]{12,}|AKIA[A-Z0-9]{12,}|(hf_|ghp_|gsk_)[A-Za-z0-9]{12,})"  # task-... does not match
)
USER_IN_URL = re.compile(r"\w+://[^/?#\s]*@")
QUERY_KEY = re.compile(r"[?&]([^=&#\s]+)=")
VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")


def load_config(path: Path, overrides: tuple[str, ...] = ()) -> RunConfig:
    """Read a YAML file and the files it extends, apply `a.b=v` overrides (values are YAML), and validate.

    Raises ConfigError for a missing file, text that is not YAML, files that extend each other in a circle, a secret,
    an unknown key or a value out of bounds.
    """
    tree = read_tree(path)
    for override in overrides:
        _apply_override(tree, override)
    return parse_config(tree, str(path))


def read_tree(path: Path) -> dict[str, Any]:
    """The keys of a file, merged over those of the file named by its key `extends` (relative to the file), and so on.

    Sections merge key by key; any other value, also a list or null, replaces the one below. Raises ConfigError, naming
    the chain of files, for one that is missing, is not YAML, or extends itself.
    """
    chain = [path]
    tree = _read_keys(chain)
    while EXTENDS in tree:
        base = tree.pop(EXTENDS)
        if not isinstance(base, str) or not base:
            raise ConfigError(f"{chain[-1]}: {EXTENDS} must be the path of one YAML file, got {base!r}")
        chain.append(chain[-1].parent / base)
        if chain[-1].resolve() in {file.resolve() for file in chain[:-1]}:
            raise ConfigError(f"{_format_chain(chain)}: a configuration cannot extend itself")
        tree = _merge(_read_keys(chain), tree)
    return tree


def _read_keys(chain: Sequence[Path]) -> dict[str, Any]:
    """The keys of the last file of a chain."""
    path, files = chain[-1], _format_chain(chain)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if len(chain) > 1:
            raise ConfigError(
                f"{files}: there is no such file; `{EXTENDS}` is relative to the file that contains it"
            ) from None
        raise ConfigError(f"no configuration file {path}. `cpo-ray configs` lists the shipped ones.") from None
    except IsADirectoryError:
        raise ConfigError(f"{files} is a folder, not a configuration file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{files} is not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{files} has no keys")
    return tree


def _format_chain(chain: Sequence[Path]) -> str:
    return f" {EXTENDS} ".join(str(file) for file in chain)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` merged over `base`; only sections merge."""
    merged = dict(base)
    for key, value in over.items():
        below = base.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def override_defaults(overrides: tuple[str, ...], origin: str) -> RunConfig:
    """The default configuration with `a.b=v` overrides, for commands without a run. Raises ConfigError like `load_config`."""
    tree: dict[str, Any] = {"name": "default"}
    for override in overrides:
        _apply_override(tree, override)
    return parse_config(tree, origin)


def parse_config(tree: dict[str, Any], origin: str) -> RunConfig:
    """Validate a nested dict. origin: the name to show in errors."""
    _refuse_secrets(tree)
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(detail) for detail in error.errors()]
        raise ConfigError(f"{origin}:\n" + "\n".join(f"  {line}" for line in lines)) from None


def _apply_override(tree: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise ConfigError(f"--set {override}: expected key.path=value")
    *parents, leaf = dotted.split(".")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override}: {parent} is a value, not a section")
    try:
        node[leaf] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: {error}") from None


def _refuse_secrets(node: Any, where: str = "") -> None:
    """Raise ConfigError for a secret, without repeating it: config.json is written to disk and uploaded to clusters."""
    if isinstance(node, dict):
        for key, value in node.items():
            if SECRET_KEY.search(str(key)):
                raise ConfigError(
                    f"{where}{key}: a secret does not belong in a configuration; name its environment variable instead"
                )
            if key == "key_variable" and isinstance(value, str) and not VARIABLE.fullmatch(value):
                raise ConfigError(
                    f"{where}{key}: this is not the name of an environment variable (capitals, digits and _); a key "
                    "itself does not belong in a configuration"
                )
            _refuse_secrets(value, f"{where}{key}.")
    elif isinstance(node, list):
        for item in node:
            _refuse_secrets(item, where)
    elif isinstance(node, str):
        reason = _secret_in(node)
        if reason:
            raise ConfigError(f"{where.rstrip('.')}: {reason}")


def _secret_in(text: str) -> str | None:
    """Why this text must not be in a configuration, or None."""
    if SECRET_VALUE.search(text):
        return "this looks like a secret; name its environment variable instead"
    if USER_IN_URL.search(text):
        return "a URL with a user or a password; set them in environment variables instead"
    secret = next(filter(SECRET_KEY.search, QUERY_KEY.findall(text)), None)
    if secret:
        return f"a URL whose query has {secret}, a secret; name its environment variable instead"
    return None


def _explain(detail: ErrorDetails) -> str:
    path = [str(part) for part in detail["loc"]]
    dotted = ".".join(path)
    if detail["type"] == "extra_forbidden":
        known = _keys_at(path[:-1])
        near = did_you_mean(path[-1], known, f"`{'.'.join([*path[:-1], '{}'])}`")
        section = f"`{'.'.join(path[:-1])}` has" if path[:-1] else "the sections are"
        return f"unknown key `{dotted}`{near or f'; {section} ' + ', '.join(known)}"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return f"{dotted}: {message}" if dotted else message
    if detail["type"] == "missing":
        return f"{dotted}: this key is required"
    return f"{dotted}: {message}, got {detail['input']!r}"


def _keys_at(path: list[str]) -> list[str]:
    """Keys of the section at `path`."""
    section: type[BaseModel] = RunConfig
    for part in path:
        field = section.model_fields.get(part)  # None for a name in a dict of sections, and for the number of an entry
        section = (section_in(field.annotation) if field else None) or section
    return list(section.model_fields)
