"""Stages `generation`, `judging`, `reward`, `mauve` and `text_metrics`."""

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from cpo_ray.config.section import EXECUTION, Section
from cpo_ray.config.urls import check_api_url

DECODING = re.compile(r"[a-z0-9][a-z0-9_-]*")
# Names of other figures of the report; each decoding has a figure win-rate-<name>.svg.
FIGURES = {"alpha", "decodings", "negatives", "reward"}


class DecodingConfig(Section):
    """How answers are decoded."""

    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Sampling temperature; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling: the smallest set of tokens with this probability."""
    top_k: Annotated[int, Field(ge=-1)] = -1
    """Sample from this many most likely tokens; -1 is the whole vocabulary."""
    beams: Annotated[int, Field(ge=1, le=10)] = 1
    """Beams; more than 1 is beam search, without sampling. Each step of each beam is a request to the engine, which is slow."""
    length_penalty: Annotated[float, Field(ge=0)] = 1.0
    """Beams are ranked by log-prob / tokens ** length_penalty; 0 ranks by log-prob. vLLM counts the prompt's tokens too."""

    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] = 1.0
    """Tokens of the prompt and of the answer so far become less likely: their logits are divided by this if positive and
    multiplied by it if negative (Keskar et al. 2019). 1 changes nothing; 1.2 is usual."""
    no_repeat_ngram: Annotated[int, Field(ge=0)] = 0
    """n: no n-gram of tokens may occur twice in prompt and answer together (`no_repeat_ngram_size` of transformers). 0: no such
    rule."""

    @model_validator(mode="after")
    def _check(self) -> "DecodingConfig":
        if self.beams > 1 and (self.temperature, self.top_p, self.top_k) != (0.0, 1.0, -1):
            raise ValueError(
                f"beams: {self.beams} does not sample, so it needs temperature 0, top_p 1 and top_k -1, got "
                f"temperature {self.temperature:g}, top_p {self.top_p:g}, top_k {self.top_k}"
            )
        if self.beams > 1 and (self.repetition_penalty, self.no_repeat_ngram) != (1.0, 0):
            raise ValueError(
                f"beams: {self.beams} needs repetition_penalty 1 and no_repeat_ngram 0: vLLM's beam search has neither"
            )
        return self


class GenerationConfig(Section):
    """Stage `generation`: every model answers the test prompts through the endpoint."""

    split: Literal["test", "validation"] = "test"
    """The split with the prompts. Tune on `validation`; use `test` once."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """The first `rows` rows of the split (the paper: 1000). Default: all."""
    models: tuple[str, ...] | None = None
    """The models to evaluate. Default: `reference`, `mle`, `cpo` and every merged one (`merged-0.30`)."""
    decodings: dict[str, DecodingConfig] = Field(default={"greedy": DecodingConfig()})
    """Name to settings. The summary table shows the first. The name is also a file name: `greedy.jsonl`."""
    concurrency: Annotated[int, Field(ge=1)] = Field(default=32, json_schema_extra=EXECUTION)
    """Concurrent requests."""

    @model_validator(mode="after")
    def _check(self) -> "GenerationConfig":
        if not self.decodings:
            raise ValueError("decodings needs at least one entry, for instance {greedy: {temperature: 0}}")
        for name in self.decodings:
            if not DECODING.fullmatch(name):
                raise ValueError(
                    f"decodings: {name!r} must be a file name of a-z, 0-9, _ and -, starting with a letter or digit"
                )
            if name in FIGURES:
                raise ValueError(f"decodings: the report has another figure named {name!r}; choose another name")
        return self


class JudgeConfig(Section):
    """Stage `judging`: an OpenAI-compatible model compares each answer with the ground truth."""

    url: str = "oracle"
    """Base URL of an OpenAI-compatible API (ending in /v1), or `oracle`: a local endpoint that uses the test rows' answers."""
    model: str = "oracle"
    """The judge's model name."""
    key_variable: str = Field(default="CPO_RAY_JUDGE_KEY", json_schema_extra=EXECUTION)
    """Environment variable with the judge's key. The key itself is never in a file."""
    api: Literal["chat", "completions"] = "chat"
    """`completions` is for a base model, which has no chat template: it continues the question up to the end of the line."""
    thinking_tokens: Annotated[int, Field(ge=0)] = 0
    """Tokens for a reasoning judge to think before its answer. Such models take no temperature, and their API expects
    `max_completion_tokens` instead of `max_tokens`: if this is above 0, requests are sent that way. What precedes the last
    `</think>` in an answer never counts."""
    template: str = "dolly"
    """`dolly` or `wiki`, the paper's queries (A.3), or a file with the placeholders {prompt}, {response_a} and {response_b}."""
    order: Literal["both", "paper"] = "both"
    """Ask in both orders (different verdicts are a tie, and counted as a flip), or once in random order as the paper did."""
    concurrency: Annotated[int, Field(ge=1)] = Field(default=16, json_schema_extra=EXECUTION)
    """Concurrent requests."""
    retries: Annotated[int, Field(ge=0)] = Field(default=6, json_schema_extra=EXECUTION)
    """Retries for 429, 5xx and dropped connections, with jitter."""
    requests_per_minute: Annotated[float, Field(gt=0)] | None = Field(default=None, json_schema_extra=EXECUTION)
    """Maximum requests per minute, evenly spaced. Default: as many as `concurrency` and the judge allow."""
    max_invalid_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Maximum share of rows with an answer that is neither A nor B; above it the stage fails."""

    @model_validator(mode="after")
    def _check(self) -> "JudgeConfig":
        if self.url == "oracle" and (self.api != "chat" or self.template not in {"dolly", "wiki"}):
            raise ValueError("the oracle supports only the templates `dolly` and `wiki` with `api: chat`")
        if self.url != "oracle":
            check_api_url("url", self.url)
        if self.thinking_tokens and self.api == "completions":
            raise ValueError("thinking_tokens needs `api: chat`: a base model does not think before it answers")
        return self


class RewardConfig(Section):
    """Stage `reward`: which response a reward model prefers, the model's or the ground truth."""

    model: str | None = None
    """A Hugging Face directory or hub id of a sequence classifier with one output. Default: none, and the stage is skipped."""
    style: Literal["chat", "pair"] | None = None
    """How prompt and response are joined: by the tokenizer's chat template, or as its pair of texts. Default: `chat` if the
    tokenizer has a template, otherwise `pair`."""
    max_tokens: Annotated[int, Field(ge=8)] | None = None
    """Maximum tokens of prompt and response. Longer ones lose the start of the prompt, then the end of the response, and are
    counted. Default: the model's maximum."""
    batch_tokens: Annotated[int, Field(ge=1)] = Field(default=8192, json_schema_extra=EXECUTION)
    """Tokens per forward pass, padding included."""


class TextMetricsConfig(Section):
    """Stage `text_metrics`: what the answers are like, without a judge. Always: repetition, diversity and length."""

    embedder: str | None = "minilm"
    """The model of the similarity to the truth and of the energy distance, as in `sampling.embedder`; null leaves both out."""
    reference_likelihood: bool = True
    """Score the answers under the run's reference model."""
    heldout: str | None = None
    """A language model that took no part in the run, a Hugging Face directory or hub id: the answers are scored under it too.
    Default: none."""
    grammar: bool = False
    """Count grammar and spelling lints of English answers with Harper, which needs the extra `cpo-ray[grammar]`."""


class MauveConfig(Section):
    """Stage `mauve`: compare generated with real continuations."""

    embedder: str = "minilm"
    """The model that computes features: as in `sampling.embedder`, or with `features: last_token` a language model."""
    features: Literal["sentence", "last_token"] = "sentence"
    """Sentence embeddings, or a language model's last hidden state at the last token (MAUVE's authors: GPT-2 large)."""
    seeds: Annotated[int, Field(ge=1)] = 3
    """Runs of MAUVE's clustering; their mean and standard deviation are reported."""
    minimum_rows: Annotated[int, Field(ge=2)] = 200
    """Minimum rows to compute MAUVE, which is biased on few samples."""

    @model_validator(mode="after")
    def _check(self) -> "MauveConfig":
        if self.features == "last_token" and self.embedder == "minilm":
            raise ValueError(
                "features: last_token needs a language model as `embedder`, e.g. openai-community/gpt2-large"
            )
        return self
