"""A run's YAML file: read, overridden, validated. What is wrong is told by its key, with the nearest one that exists."""

import difflib
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cpo_ray.config import DecodingConfig, RunConfig
from cpo_ray.errors import ConfigError

SECRET_KEY = re.compile(r"(api_?key|token|secret|password)$", re.IGNORECASE)
SECRET_VALUE = re.compile(r"^(sk-|hf_|AKIA|ghp_)[A-Za-z0-9_-]{12,}")


def load_config(path: Path, overrides: tuple[str, ...] = ()) -> RunConfig:
    """Read a YAML file, apply `a.b=v` overrides (values are YAML), and validate.

    Raises ConfigError for a missing file, a line that is not YAML, a secret, an unknown key or a value out of bounds.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no configuration file {path}. `cpo-ray configs` lists the shipped ones.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds no keys")
    for override in overrides:
        _apply_override(tree, override)
    return parse_config(tree, str(path))


def parse_config(tree: dict[str, Any], origin: str) -> RunConfig:
    """Validate a nested dict; `origin` is named in errors."""
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
    if isinstance(node, dict):
        for key, value in node.items():
            if SECRET_KEY.search(str(key)):
                raise ConfigError(
                    f"{where}{key}: a secret does not belong in a configuration; name its environment variable"
                )
            _refuse_secrets(value, f"{where}{key}.")
    elif isinstance(node, list):
        for item in node:
            _refuse_secrets(item, where)
    elif isinstance(node, str) and SECRET_VALUE.match(node):
        raise ConfigError(f"{where.rstrip('.')}: this looks like a secret; name its environment variable instead")


def _explain(detail: ErrorDetails) -> str:
    path = [str(part) for part in detail["loc"]]
    dotted = ".".join(path)
    if detail["type"] == "extra_forbidden":
        known = _keys_at(path[:-1])
        nearest = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.0)
        return f"unknown key `{dotted}`; did you mean `{'.'.join([*path[:-1], *nearest])}`?"
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
        field = section.model_fields.get(part)
        annotation = field.annotation if field else None
        if annotation == dict[str, DecodingConfig] or not (
            isinstance(annotation, type) and issubclass(annotation, BaseModel)
        ):
            return list(DecodingConfig.model_fields)
        section = annotation
    return list(section.model_fields)
