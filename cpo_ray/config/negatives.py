"""Kinds and counts of negatives, and the API that writes `unhelpful` ones."""

from typing import Annotated

from pydantic import ConfigDict, Field, model_validator

from cpo_ray.config.section import EXECUTION, Section
from cpo_ray.config.urls import check_api_url


class NegativeCounts(Section):
    """Negatives per prompt, by kind. Their sum is K - 1 (the paper's MixN: 3 batch, 5 meanfield, 3 truncation). A kind
    declared in `sampling.kinds` is set here too, under its name. With `data.source: preferences` the defaults are 0."""

    model_config = ConfigDict(extra="allow")  # SamplingConfig has `kinds` and refuses undeclared ones
    __pydantic_extra__: dict[str, Annotated[int, Field(ge=0)]]

    autoregressive: Annotated[int, Field(ge=0)] = 0
    """Sampled from the reference by vLLM."""
    greedy: Annotated[int, Field(ge=0)] = 0
    """The reference's greedy answer (temperature 0), by vLLM. There is one per prompt."""
    batch: Annotated[int, Field(ge=0)] = 3
    """Other prompts' responses."""
    meanfield: Annotated[int, Field(ge=0)] = 5
    """The gold with a share of its tokens resampled independently from the reference."""
    truncation: Annotated[int, Field(ge=0)] = 3
    """A proper prefix of the gold, then EOS."""
    unhelpful: Annotated[int, Field(ge=0)] = 0
    """Written by an LLM on request for a response that does not help: see `sampling.unhelpful` (the paper's DPO baseline: 1,
    and no other kind)."""

    @property
    def by_kind(self) -> dict[str, int]:
        """The kinds with a count above 0, built-in ones first."""
        return {kind: count for kind, count in self.model_dump().items() if count}

    @property
    def total(self) -> int:
        """How many there are: K - 1, unless the data has ranked answers."""
        return sum(self.by_kind.values())


class UnhelpfulConfig(Section):
    """The API that writes `unhelpful` negatives. Answers are cached on disk, so no request is paid for twice. The limits apply
    to all requests of a run directory, including those before a restart. Before the first request an estimate is printed
    and checked against them."""

    url: str | None = None
    """Base URL of an OpenAI-compatible API (ending in /v1)."""
    model: str | None = None
    """The model's name in the API."""
    key_variable: str = Field(default="CPO_RAY_UNHELPFUL_KEY", json_schema_extra=EXECUTION)
    """Environment variable with the API's key. The key itself is never in a file."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Sampling temperature."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Maximum tokens of an answer, in the API's tokens. Default: `data.max_response_tokens`."""
    seeded: bool = True
    """Send a `seed` with each request. Set it to false for an API that rejects the field."""
    concurrency: Annotated[int, Field(ge=1)] = Field(default=16, json_schema_extra=EXECUTION)
    """Concurrent requests."""
    requests_per_minute: Annotated[float, Field(gt=0)] | None = Field(default=None, json_schema_extra=EXECUTION)
    """Maximum requests per minute, evenly spaced, retries included. Default: as fast as the API answers."""
    retries: Annotated[int, Field(ge=0)] = Field(default=6, json_schema_extra=EXECUTION)
    """Retries for 429, 5xx, dropped connections and answers that are not JSON, with jitter."""
    timeout_s: Annotated[float, Field(gt=0)] = Field(default=120.0, json_schema_extra=EXECUTION)
    """Timeout of one request, seconds."""
    max_requests: Annotated[int, Field(ge=0)] = Field(default=10_000, json_schema_extra=EXECUTION)
    """Maximum number of answers. A request that fails and is retried counts once, because a failed one is not billed."""
    max_total_tokens: Annotated[int, Field(ge=0)] = Field(default=5_000_000, json_schema_extra=EXECUTION)
    """Maximum tokens of prompts and answers together, by the API's own count if it returns one."""
    input_price: Annotated[float, Field(ge=0)] | None = Field(default=None, json_schema_extra=EXECUTION)
    """Price of a million prompt tokens, in any currency."""
    output_price: Annotated[float, Field(ge=0)] | None = Field(default=None, json_schema_extra=EXECUTION)
    """Price of a million answer tokens."""
    max_price: Annotated[float, Field(ge=0)] | None = Field(default=None, json_schema_extra=EXECUTION)
    """Maximum price of all answers. It needs both prices."""

    @model_validator(mode="after")
    def _check(self) -> "UnhelpfulConfig":
        if self.url is not None:
            check_api_url("url", self.url)
        if self.max_price is not None and (self.input_price is None or self.output_price is None):
            raise ValueError(f"max_price {self.max_price:g} needs input_price and output_price, per million tokens")
        return self
