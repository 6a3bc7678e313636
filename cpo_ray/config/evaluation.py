"""Stages `generation`, `judging`, `reward` and `mauve`."""

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from cpo_ray.config.section import EXECUTION, Section
from cpo_ray.config.urls import check_api_url

DECODING = re.compile(r"[a-z0-9][a-z0-9_-]*")
# The report's own figures, beside one per decoding: win-rate-<name>.svg.
FIGURES = {"alpha", "decodings", "negatives", "reward"}


class DecodingConfig(Section):
    """How answers are generated."""

    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus."""
    top_k: Annotated[int, Field(ge=-1)] = -1
    """-1 is the whole vocabulary."""
    beams: Annotated[int, Field(ge=1, le=10)] = 1
    """More than 1 is beam search, with nothing drawn. Each step of each beam is a request to the engine: it is slow."""
    length_penalty: Annotated[float, Field(ge=0)] = 1.0
    """Beams are ranked by log-prob / tokens ** length_penalty; 0 ranks by log-prob. vLLM counts the prompt's tokens too."""

    @model_validator(mode="after")
    def _check(self) -> "DecodingConfig":
        if self.beams > 1 and (self.temperature, self.top_p, self.top_k) != (0.0, 1.0, -1):
            raise ValueError(
                f"beams: {self.beams} draws nothing, so it goes with temperature 0, top_p 1 and top_k -1; it has "
                f"temperature {self.temperature:g}, top_p {self.top_p:g}, top_k {self.top_k}"
            )
        return self


class GenerationConfig(Section):
    """Stage `generation`: every model answers the test prompts through the endpoint."""

    split: Literal["test", "validation"] = "test"
    """Tune on `validation`; look at `test` once."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """The first `rows` rows of the split (the paper: 1000). Default: all."""
    models: tuple[str, ...] | None = None
    """Which models answer. Default: `reference`, `mle`, `cpo` and every merged one (`merged-0.30`)."""
    decodings: dict[str, DecodingConfig] = Field(default={"greedy": DecodingConfig()})
    """Name to settings. The first is the one that the summary table shows. A name is a file's too: `greedy.jsonl`."""
    concurrency: Annotated[int, Field(ge=1)] = Field(default=32, json_schema_extra=EXECUTION)
    """Requests under way at once."""

    @model_validator(mode="after")
    def _check(self) -> "GenerationConfig":
        if not self.decodings:
            raise ValueError("decodings needs at least one entry, for instance {greedy: {temperature: 0}}")
        for name in self.decodings:
            if not DECODING.fullmatch(name):
                raise ValueError(
                    f"decodings: {name!r} is to name a file, so it takes a-z, 0-9, _ and -, and begins with neither sign"
                )
            if name in FIGURES:
                raise ValueError(
                    f"decodings: the report has another figure named {name!r}; call the decoding otherwise"
                )
        return self


class JudgeConfig(Section):
    """Stage `judging`: pairwise, against the ground truth, by any OpenAI-compatible model."""

    url: str = "oracle"
    """Base URL of an OpenAI-compatible API (ending in /v1), or `oracle`: a local endpoint that knows the test rows' answers."""
    model: str = "oracle"
    """The judge's model name."""
    key_variable: str = Field(default="CPO_RAY_JUDGE_KEY", json_schema_extra=EXECUTION)
    """Environment variable with the judge's key. The key itself never stands in a file."""
    api: Literal["chat", "completions"] = "chat"
    """`completions` for a base model, which has no chat template: it continues the question to the end of the line."""
    thinking_tokens: Annotated[int, Field(ge=0)] = 0
    """For a judge that thinks before it answers: room for its thoughts. Such models take no temperature, and their API wants
    `max_completion_tokens` in place of `max_tokens`: they are asked so where this is above 0."""
    template: str = "dolly"
    """`dolly` or `wiki`, the paper's queries (A.3), or a file with the places {prompt}, {response_a} and {response_b}."""
    order: Literal["both", "paper"] = "both"
    """Ask in both orders (a flip is a tie, and counted), or once in random order as the paper did."""
    concurrency: Annotated[int, Field(ge=1)] = Field(default=16, json_schema_extra=EXECUTION)
    """Requests under way at once."""
    retries: Annotated[int, Field(ge=0)] = Field(default=6, json_schema_extra=EXECUTION)
    """Tries after the first for 429, 5xx and dropped connections, with jitter."""
    requests_per_minute: Annotated[float, Field(gt=0)] | None = Field(default=None, json_schema_extra=EXECUTION)
    """At most so many requests leave, evenly spaced. Default: as many as `concurrency` and the judge allow."""
    max_invalid_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Rows with an answer that is neither A nor B fail the stage beyond this share."""

    @model_validator(mode="after")
    def _check(self) -> "JudgeConfig":
        if self.url == "oracle" and (self.api != "chat" or self.template not in {"dolly", "wiki"}):
            raise ValueError("the oracle reads the templates `dolly` and `wiki` over `api: chat`, and nothing else")
        if self.url != "oracle":
            check_api_url("url", self.url)
        if self.thinking_tokens and self.api == "completions":
            raise ValueError("thinking_tokens goes with `api: chat`: a base model does not think first")
        return self


class RewardConfig(Section):
    """Stage `reward`: which of two responses a reward model prefers, the model's or the ground truth."""

    model: str | None = None
    """A Hugging Face directory or hub id: a sequence classifier with one output. Default: none, and the stage is skipped."""
    style: Literal["chat", "pair"] | None = None
    """How prompt and response are put together: by the tokenizer's chat template, or as its pair of texts. Default: `chat`
    where the tokenizer has a template, else `pair`."""
    max_tokens: Annotated[int, Field(ge=8)] | None = None
    """Longer ones lose the beginning of their prompt, then the end of their response, and are counted. Default: what the
    model takes."""
    batch_tokens: Annotated[int, Field(ge=1)] = Field(default=8192, json_schema_extra=EXECUTION)
    """Tokens of a forward pass, padding included."""


class MauveConfig(Section):
    """Stage `mauve`: generated against real continuations."""

    embedder: str = "minilm"
    """The featurizer's model: as in `sampling.embedder`, or with `features: last_token` a language model."""
    features: Literal["sentence", "last_token"] = "sentence"
    """Sentence embeddings, or a language model's last hidden state at the last token (MAUVE's authors: GPT-2 large)."""
    seeds: Annotated[int, Field(ge=1)] = 3
    """Runs of MAUVE's clustering; mean and deviation are reported."""
    minimum_rows: Annotated[int, Field(ge=2)] = 200
    """Refuse to compute on fewer rows: MAUVE is biased on few samples."""

    @model_validator(mode="after")
    def _check(self) -> "MauveConfig":
        if self.features == "last_token" and self.embedder == "minilm":
            raise ValueError(
                "features: last_token needs a language model as `embedder`, e.g. openai-community/gpt2-large"
            )
        return self
