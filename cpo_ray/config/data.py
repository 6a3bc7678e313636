"""Stage `data`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from cpo_ray.config.section import Section


class TokenizerConfig(Section):
    """The tokenizer: trained on the training split, or loaded."""

    path: str | None = None
    """A directory (a Hugging Face tokenizer, or GPT-2 style `*vocab.json` and `*merges.txt`) or a hub id.
    Without it a byte-level BPE is trained on the training split."""
    vocabulary_size: Annotated[int, Field(ge=300, le=500_000)] = 1024
    """Size of the trained vocabulary. Not used with `path`."""


class DataConfig(Section):
    """Stage `data`: read, split, cut, tokenize."""

    source: Literal["synthetic", "dolly"] = "synthetic"
    """`synthetic` is embedded and needs no file; `dolly` reads databricks-dolly-15k's JSONL from `path`."""
    path: Path | None = None
    """The data file. Needed by every source but `synthetic`."""
    train_rows: Annotated[int, Field(ge=1)] = 3000
    """Rows of the training split (the paper: 7505 of Dolly)."""
    validation_rows: Annotated[int, Field(ge=0)] = 200
    """Rows held out for tuning. They come out of the training rows' pool, never out of the test rows."""
    test_rows: Annotated[int, Field(ge=1)] = 500
    """Rows of the test split (the paper: 7506 of Dolly). The same prompt never falls on two sides."""
    template: str = "{instruction}\n{context}\n"
    """The prompt, with `{instruction}` and `{context}`. A row without context loses the line that holds `{context}`."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """How text becomes tokens."""
    max_prompt_tokens: Annotated[int, Field(ge=4)] = 192
    """A longer prompt keeps its last `max_prompt_tokens` tokens. Such rows are counted."""
    max_response_tokens: Annotated[int, Field(ge=2)] = 64
    """A longer response keeps its first `max_response_tokens - 1` tokens and EOS. Such rows are counted."""
    on_bad_row: Literal["error", "quarantine"] = "error"
    """A malformed or empty row stops the stage, or goes to `data/quarantine.jsonl` with its line number and a count."""

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        if self.source != "synthetic" and self.path is None:
            raise ValueError(f"source: {self.source} needs data.path (for instance --set data.path=/data/dolly.jsonl)")
        if "{instruction}" not in self.template:
            raise ValueError("template must contain {instruction}")
        return self
