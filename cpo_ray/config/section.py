"""The base class of all configuration sections."""

from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer

# Marks a key that sets where and how fast a stage runs, not its result: changing it makes no finished stage stale.
EXECUTION: dict[str, Any] = {"execution": True}

T = TypeVar("T")
READ_AUTO = BeforeValidator(lambda value: None if value == "auto" else value)
Auto = Annotated[T | None, READ_AUTO, PlainSerializer(lambda value: "auto" if value is None else value)]
"""A value, or `auto` in the file and None here: it follows from the machine (`planning/placement.py`)."""


class Section(BaseModel):
    """A section of the configuration: immutable, without unknown keys, documented in place."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


def section_in(annotation: Any) -> type[BaseModel] | None:
    """The section in a key's type: the type itself, the values of a dict, the entries of a tuple, or one of several types."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    origin, arguments = get_origin(annotation), get_args(annotation)
    if hasattr(annotation, "__metadata__"):  # Annotated
        return section_in(arguments[0])
    if origin in (dict, tuple):
        return section_in(arguments[1 if origin is dict else 0])
    if origin in (Union, UnionType):
        return next(filter(None, map(section_in, arguments)), None)
    return None


def stage_inputs(section: BaseModel) -> dict[str, Any]:
    """A section without its *execution* keys, as JSON: the values that a stage's result depends on."""
    inputs: dict[str, Any] = {}
    for key, field in type(section).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("execution"):
            continue
        value = getattr(section, key)
        inputs[key] = stage_inputs(value) if isinstance(value, Section) else section.model_dump(mode="json")[key]
    return inputs | (section.model_extra or {})
