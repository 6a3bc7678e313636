"""The result of comparing two models, and the files that both kinds of comparison read."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpo_ray.errors import ArtifactError

CONFIG = "config.json"
# Notes about how a file was saved, which are not worth a line.
BOOKKEEPING = {"name_or_path", "_name_or_path", "transformers_version", "processor_class"}
LONGEST_VALUE = 60  # characters of a value in a message


@dataclass
class Differences:
    """Differences between two models, one text each.

    `refused`: the models compute something else. `dtypes`: those of `refused` about a tensor's dtype, floating point in both.
    `change_nothing`: the files differ, the tokens and numbers do not. `copies`: names of tensors that repeat another one
    (a tied LM head that is stored too) -> the name of the tensor that they repeat.
    """

    refused: list[str] = field(default_factory=list)
    dtypes: list[str] = field(default_factory=list)
    change_nothing: list[str] = field(default_factory=list)
    copies: dict[str, str] = field(default_factory=dict)

    def add(self, other: "Differences") -> None:
        """Append the differences of `other`."""
        self.refused += other.refused
        self.dtypes += other.dtypes
        self.change_nothing += other.change_nothing
        self.copies |= other.copies


def differing_keys(left: dict[str, Any], right: dict[str, Any]) -> Iterator[str]:
    """Keys with another value in the other object, or in one alone; not those of BOOKKEEPING."""
    for key in sorted(left.keys() | right.keys()):
        if key not in BOOKKEEPING and (key in left, left.get(key)) != (key in right, right.get(key)):
            yield key


def describe_values(left: Any, right: Any) -> str:
    """Both values, shortened, for a message."""
    return " and ".join(
        text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + "..." for text in map(repr, (left, right))
    )


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises ArtifactError if the file is missing or holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path.parent} is not a model directory: {path.name}: {error}") from None
    if not isinstance(content, dict):
        raise ArtifactError(f"{path} is not a JSON object")
    return content
