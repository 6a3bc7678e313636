"""What every part of the configuration is made of."""

from typing import Any

from pydantic import BaseModel, ConfigDict

# Marks a key that says how fast or where, never what: changing it makes no finished stage stale.
EXECUTION: dict[str, Any] = {"execution": True}


class Section(BaseModel):
    """A part of the configuration: immutable, closed to unknown keys, documented in place."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


def stage_inputs(section: BaseModel) -> dict[str, Any]:
    """A section without its execution-only keys, as JSON: what a stage's result depends on."""
    inputs: dict[str, Any] = {}
    for key, field in type(section).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("execution"):
            continue
        value = getattr(section, key)
        inputs[key] = stage_inputs(value) if isinstance(value, Section) else section.model_dump(mode="json")[key]
    return inputs | (section.model_extra or {})
