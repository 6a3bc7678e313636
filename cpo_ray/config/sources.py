"""Where the rows of stage `data` come from, and how they are laid out."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cpo_ray.config.section import Section

RowSource = Literal[
    "auto", "instructions", "dolly", "alpaca", "messages", "sharegpt", "prompt_completion", "preferences"
]
"""Sources whose files have one row after another, as opposed to articles."""
HUB_KEYS = ("subset", "split", "revision")


class FieldsConfig(Section):
    """Names of the fields of a row (`source: instructions`). Their values must be text. A row without the field `instruction`
    but with `messages` (or ShareGPT's `conversations`) is a conversation, see [Data](data.md#conversations)."""

    instruction: str = "instruction"
    """The instruction or question. It must not be empty."""
    context: str | None = None
    """Text that the instruction refers to; it may be empty, null or absent. Default: no row has a context."""
    response: str = "response"
    """The ground-truth response. It must not be empty."""
    answers: str | None = None
    """Of `preferences`: the list of a row's answers. Default: `completions`, `responses`, `answers`, `generations` or
    `candidates`."""
    score: str | None = None
    """Of `preferences`: the score of an answer, or the list of scores beside a list of texts; `order` if the answers are in
    order, best first. Default: the first of the usual names that there is, see [Data](data.md#ranked-answers)."""
    category: str | None = None
    """A label that the report groups rows by. Default: none; in the other layouts, `category` if a row has it."""


class SourceConfig(Section):
    """One of several sources (`data.sources`)."""

    source: RowSource = "auto"
    """The layout of its rows, as in `data.source`."""
    path: str
    """As `data.path`."""
    fields: FieldsConfig = FieldsConfig()
    """As `data.fields`."""
    subset: str | None = None
    """As `data.subset`."""
    split: str | None = None
    """As `data.split`."""
    revision: str | None = None
    """As `data.revision`."""
    weight: Annotated[float, Field(gt=0)] | None = None
    """The share of this source among all rows, relative to the other weights: 3 beside 1 is three quarters. As many rows are
    used as the weights allow without repeating one, chosen by the seed and their content. Default for all: every row once."""

    @model_validator(mode="after")
    def _check(self) -> "SourceConfig":
        if self.source == "instructions" or self.fields == FieldsConfig():
            return self
        if self.source in ("auto", "preferences") or self.fields == FieldsConfig(category=self.fields.category):
            return self
        raise ValueError(
            f"fields are for source: instructions or preferences; rows of source: {self.source} have fixed names"
        )
