"""Generate docs/configuration.md from config/: `python -m cpo_ray.config.reference_page docs/configuration.md`."""

import sys
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cpo_ray.config import RunConfig
from cpo_ray.config.section import READ_AUTO, section_in

INTRODUCTION = """\
# Configuration

A run is one YAML file. Every key except `name` has a default. An unknown key is an error that names the nearest key.
`--set a.b=value` overrides one key (the value is YAML). `cpo-ray validate CONFIG` prints the file with every default
filled in. `extends: other.yaml` (a path relative to the file) starts from that file: sections merge key by key, any other
value replaces. Secrets do not belong in the file: a key names the environment variable with the secret.

Keys marked *execution* set where and how fast a stage runs, not its result: changing one makes no finished stage stale.

This page is generated from `cpo_ray/config/` by `make docs`.
"""


def render_reference() -> str:
    """The whole page."""
    parts = [INTRODUCTION, *_section(RunConfig, "")]
    return "\n".join(parts).rstrip() + "\n"


def _section(model: type[BaseModel], prefix: str) -> list[str]:
    """A heading and a table for the values of `model`, then the sections within it."""
    title = f"## `{prefix.rstrip('.')}`" if prefix else "## The run"
    rows, inner = [], []
    for name, field in model.model_fields.items():
        section = section_in(field.annotation)
        if section is None:
            rows.append(_row(prefix + name, field))
        else:
            path, description = f"{prefix}{name}.", (field.description or "") + _execution(field)
            if field.annotation is not section:  # a dict or a list of sections, or a section or null
                rows.append(_row(prefix + name, field))
                entry = {"dict": "<name>.", "tuple": "<n>."}.get(
                    getattr(get_origin(field.annotation), "__name__", ""), ""
                )
                path, description = path + entry, ""
            inner.append((section, path, description))
    lines = [title, "", _one_line(model.__doc__ or ""), ""]
    if rows:
        lines += ["| key | type | default | |", "|---|---|---|---|", *rows, ""]
    for section, path, description in inner:
        heading, blank, about, *rest = _section(section, path)
        lines += [heading, blank, " ".join(filter(None, [about, _one_line(description)])), *rest]
    return lines


def _row(key: str, field: FieldInfo) -> str:
    kind = " ".join(filter(None, [_type_name(field.annotation), _bounds(field)]))
    if READ_AUTO in field.metadata:
        kind = kind.replace(", or null", ", or `auto`")
    cells = [f"`{key}`", kind, _default(field), _one_line(field.description or "") + _execution(field)]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _execution(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    return " *execution*" if isinstance(extra, dict) and extra.get("execution") else ""


def _type_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        return f"list of {_type_name(arguments[0])}"
    if origin is dict:
        return f"name to {_type_name(arguments[1])}"
    if hasattr(annotation, "__metadata__"):
        bounds = ", ".join(filter(None, map(_bound, annotation.__metadata__)))
        return f"{_type_name(arguments[0])} {bounds}".strip()
    if arguments and (origin in (Union, UnionType) or type(None) in arguments):
        names = " or ".join(_type_name(argument) for argument in arguments if argument is not type(None))
        return names + (", or null" if type(None) in arguments else "")
    if section_in(annotation):
        return "section"
    return {"str": "text", "int": "integer", "float": "number", "bool": "true or false"}.get(
        annotation.__name__, annotation.__name__.lower()
    )


def _bounds(field: FieldInfo) -> str:
    return ", ".join(filter(None, map(_bound, field.metadata)))


def _bound(constraint: Any) -> str:
    """A bound as text, e.g. `>= 1`. A Field inside Annotated has its constraints in `metadata`."""
    for name, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
        bound = getattr(constraint, name, None)
        if bound is not None:
            return f"{sign} {bound:g}"
    if isinstance(constraint, FieldInfo):
        return _bounds(constraint)
    pattern = getattr(constraint, "pattern", None)
    return f"matching `{pattern}`" if pattern else ""


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "*required*"
    value = field.default
    if value is None:
        return "`auto`" if READ_AUTO in field.metadata else "null"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    if isinstance(value, dict):
        return "`{" + ", ".join(f"{name}: {{}}" for name in value) + "}`"
    if isinstance(value, str):
        return f"`{value!r}`" if "\n" in value else f"`{value}`"
    return f"`{value}`"


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render_reference(), encoding="utf-8")
