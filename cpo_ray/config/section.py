"""The base class of all configuration sections."""

from typing import Any

from pydantic import BaseModel, ConfigDict

# Marks a key that sets where and how fast a stage runs, not its result: changing it makes no finished stage stale.
EXECUTION: dict[str, Any] = {"execution": True}


class Section(BaseModel):
    """A section of the configuration: immutable, without unknown keys, documented in place."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


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
