"""How rows are laid out: which keys hold the instruction and its response, by the name of the layout or by a first row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cpo_ray.config import FieldsConfig, SourceConfig
from cpo_ray.data.objects import FileObject, keys_of, read_objects
from cpo_ray.data.sources import open_part
from cpo_ray.errors import DataError

FIELDS = {
    "dolly": FieldsConfig(instruction="instruction", context="context", response="response"),
    "alpaca": FieldsConfig(instruction="instruction", context="input", response="output"),
    "prompt_completion": FieldsConfig(instruction="prompt", response="completion"),
    "messages": FieldsConfig(instruction="messages"),
    "sharegpt": FieldsConfig(instruction="conversations"),
}
"""The names of the fields of each layout; of conversations, the key of their messages."""
ROWS_SOURCE = "instructions"
"""The `source` of every row that is not of `dolly` itself, so that its id does not depend on its layout."""
PREFERENCES = "preferences"
CONVERSATIONS = ("messages", "sharegpt")
DOLLY = FieldsConfig(instruction="instruction", context="context", response="response", category="category")
"""databricks-dolly-15k itself (`source: dolly`), whose every row has all four."""


@dataclass(frozen=True)
class RowLayout:
    """The fields of a source's rows.

    source: the rows' `source`, which is a part of their ids. has_names: the user has named the fields, so a context or a
    category that no row has is an error. Otherwise conversations must alternate between user and assistant.
    """

    name: str
    fields: FieldsConfig
    source: str = ROWS_SOURCE
    has_names: bool = False
    every_answer: bool = False  # whether every answer of a conversation makes a row, instead of the last

    @property
    def is_conversation(self) -> bool:
        """Whether a row is a list of messages."""
        return self.name in CONVERSATIONS


def layout_of(source: SourceConfig, parts: Sequence[str], hint: str = "") -> RowLayout:
    """The configured layout; for `auto`, that of the first row of the first part.

    Raises DataError if the first row has no known layout, or the file cannot be read.
    """
    if source.source == "dolly":
        return RowLayout("dolly", DOLLY, "dolly", has_names=True)
    if source.source == PREFERENCES:
        return RowLayout(PREFERENCES, source.fields)
    if source.source == "instructions":
        return RowLayout("instructions", source.fields, has_names=True)
    category = {"category": source.fields.category}
    if source.source != "auto":
        return RowLayout(source.source, FIELDS[source.source].model_copy(update=category))
    first = first_row(parts[0], hint)
    if first is None:  # reading it reports what is wrong
        return RowLayout("instructions", source.fields, has_names=True)
    if {"chosen", "rejected"} <= first.keys():
        raise DataError(
            f"{parts[0]}: its first row has answers that are chosen and rejected. Set data.source=preferences to train on "
            "them, or name the layout of the rest"
        )
    layout = find_layout(first, source.fields)
    if layout is None:
        known = ", ".join([*FIELDS, PREFERENCES])
        raise DataError(
            f"{parts[0]}: its first row has the keys {keys_of(first)}, which are those of no layout. Name the layout with "
            f"data.source ({known}), or the fields with data.source=instructions, data.fields.instruction and "
            "data.fields.response."
        )
    return layout


def first_row(part: str, hint: str = "") -> Mapping[str, object] | None:
    """The first object of a file; None if it has none, or if its first row is not an object."""
    with open_part(part, hint) as file:
        found = next((found for found in read_objects(file, part) if isinstance(found, FileObject)), None)
    return found.value if found is not None and isinstance(found.value, dict) else None


def find_layout(row: Mapping[str, object], fields: FieldsConfig) -> RowLayout | None:
    """The layout whose keys the row has; conversations first, then the configured names, then those of FIELDS."""
    for name in CONVERSATIONS:
        if isinstance(row.get(FIELDS[name].instruction), list):
            return RowLayout(name, FIELDS[name].model_copy(update={"category": fields.category}))
    if fields != FieldsConfig(category=fields.category) and {fields.instruction, fields.response} <= row.keys():
        return RowLayout("instructions", fields, has_names=True)
    for name in ("dolly", "alpaca", "prompt_completion"):
        if {FIELDS[name].instruction, FIELDS[name].response} <= row.keys():
            return RowLayout(name, FIELDS[name].model_copy(update={"category": fields.category}))
    return None
