"""Which negatives, how many, and the API behind one kind of them."""

from typing import Annotated

from pydantic import ConfigDict, Field, model_validator

from cpo_ray.config.section import EXECUTION, Section
from cpo_ray.config.urls import check_api_url


class NegativeCounts(Section):
    """Negatives per prompt and kind. Their sum is K - 1 (the paper's MixN: 3 batch, 5 meanfield, 3 truncation). A kind
    declared in `sampling.kinds` is counted here too, under its name."""

    model_config = ConfigDict(extra="allow")  # SamplingConfig, which sees `kinds`, refuses what is not declared there
    __pydantic_extra__: dict[str, Annotated[int, Field(ge=0)]]

    autoregressive: Annotated[int, Field(ge=0)] = 0
    """Sampled from the reference by vLLM."""
    batch: Annotated[int, Field(ge=0)] = 3
    """Other prompts' responses."""
    meanfield: Annotated[int, Field(ge=0)] = 5
    """The gold with a share of its tokens resampled independently from the reference."""
    truncation: Annotated[int, Field(ge=0)] = 3
    """The gold cut short."""
    unhelpful: Annotated[int, Field(ge=0)] = 0
    """Written by an LLM that is asked for a response that does not help: see `sampling.unhelpful` (the paper's DPO
    baseline: 1, and none of the others)."""

    @model_validator(mode="after")
    def _check(self) -> "NegativeCounts":
        if self.total == 0:
            raise ValueError("K = 1: at least one negative per prompt is needed (K >= 2)")
        return self

    @property
    def by_kind(self) -> dict[str, int]:
        """The kinds that are wanted, shipped ones first, with their counts."""
        return {kind: count for kind, count in self.model_dump().items() if count}

    @property
    def total(self) -> int:
        """K - 1."""
        return sum(self.by_kind.values())


class UnhelpfulConfig(Section):
    """The API that writes `unhelpful` negatives. Answers are kept on disk and no question is paid for twice. The caps hold
    for all that a run directory ever asks, restarts included; the estimate is told, and held against them, before the
    first request."""

    url: str | None = None
    """Base URL of an OpenAI-compatible API (ending in /v1)."""
    model: str | None = None
    """The model's name there."""
    key_variable: str = Field(default="CPO_RAY_UNHELPFUL_KEY", json_schema_extra=EXECUTION)
    """Environment variable with the API's key. The key itself never stands in a file."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Temperature that is asked for."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Longest answer that is asked for, in the API's tokens. Default: `data.max_response_tokens`."""
    seeded: bool = True
    """Send a `seed` with each request. Turn it off for an API that refuses the field."""
    concurrency: Annotated[int, Field(ge=1)] = Field(default=16, json_schema_extra=EXECUTION)
    """Requests under way at once."""
    requests_per_minute: Annotated[float, Field(gt=0)] | None = Field(default=None, json_schema_extra=EXECUTION)
    """Requests are spaced to this rate, those tried again included. Default: as fast as the API answers."""
    retries: Annotated[int, Field(ge=0)] = Field(default=6, json_schema_extra=EXECUTION)
    """Tries after the first for 429, 5xx, dropped connections and answers that are not JSON, with jitter."""
    timeout_s: Annotated[float, Field(gt=0)] = Field(default=120.0, json_schema_extra=EXECUTION)
    """How long one request may take."""
    max_requests: Annotated[int, Field(ge=0)] = Field(default=10_000, json_schema_extra=EXECUTION)
    """Cap on answers asked for. A request that fails and is tried again counts once: it is not billed."""
    max_total_tokens: Annotated[int, Field(ge=0)] = Field(default=5_000_000, json_schema_extra=EXECUTION)
    """Cap on tokens, prompts and answers together, by the API's own count where it gives one."""
    input_price: Annotated[float, Field(ge=0)] | None = Field(default=None, json_schema_extra=EXECUTION)
    """Price of a million prompt tokens, in whatever currency."""
    output_price: Annotated[float, Field(ge=0)] | None = Field(default=None, json_schema_extra=EXECUTION)
    """Price of a million answered tokens."""
    max_price: Annotated[float, Field(ge=0)] | None = Field(default=None, json_schema_extra=EXECUTION)
    """Cap on the price of all answers. It needs both prices."""

    @model_validator(mode="after")
    def _check(self) -> "UnhelpfulConfig":
        if self.url is not None:
            check_api_url("url", self.url)
        if self.max_price is not None and (self.input_price is None or self.output_price is None):
            raise ValueError(f"max_price {self.max_price:g} needs input_price and output_price, per million tokens")
        return self
