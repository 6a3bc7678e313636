"""Stage `merging`, and the endpoint."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from cpo_ray.config.inference import EngineConfig
from cpo_ray.config.section import EXECUTION, Auto, Section


class MergingConfig(Section):
    """Stage `merging`: the weight-space ensemble `theta = alpha * theta_MLE + (1 - alpha) * theta_CPO`."""

    alphas: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.3, 0.7)
    """One merged model per alpha, with at most two decimals (the paper: 0.1, 0.3, 0.5, 0.7, 0.9)."""

    @model_validator(mode="after")
    def _check(self) -> "MergingConfig":
        finer = [alpha for alpha in self.alphas if alpha != round(alpha, 2)]
        if finer:
            raise ValueError(
                f"alphas {finer}: a merged model is named by its alpha's first two decimals ({self.model_name(finer[0])}), "
                "so an alpha may have at most two"
            )
        names = [self.model_name(alpha) for alpha in self.alphas]
        if len(set(names)) != len(names):
            raise ValueError(f"alphas {list(self.alphas)} name one model twice: {names}")
        return self

    @staticmethod
    def model_name(alpha: float) -> str:
        """The merged model's directory and its name at the endpoint."""
        return f"merged-{alpha:.2f}"


class LimitsConfig(Section):
    """Limits of one request and of all requests together. Beyond them a request gets a 4xx before it reaches an engine."""

    body_mib: Annotated[float, Field(gt=0)] = Field(default=4.0, json_schema_extra=EXECUTION)
    """Size of a request's body, MiB."""
    prompts: Annotated[int, Field(ge=1)] = Field(default=64, json_schema_extra=EXECUTION)
    """Prompts in one request."""
    samples: Annotated[int, Field(ge=1)] = Field(default=64, json_schema_extra=EXECUTION)
    """`n`: answers per prompt, or beams."""
    tokens: Annotated[int, Field(ge=1)] = Field(default=65_536, json_schema_extra=EXECUTION)
    """Maximum generated tokens of one request: prompts * n * max_tokens."""
    requests: Annotated[int, Field(ge=1)] = Field(default=512, json_schema_extra=EXECUTION)
    """Active and waiting requests, over all models. Further requests get 429 and a Retry-After."""


class ServingConfig(Section):
    """Ray Serve: every model of the run behind one OpenAI-compatible endpoint."""

    host: str = Field(default="127.0.0.1", json_schema_extra=EXECUTION)
    """Address to listen on. Any address except loopback needs a key from the environment or a file."""
    port: Annotated[int, Field(ge=0, le=65535)] = Field(default=0, json_schema_extra=EXECUTION)
    """Port to listen on; 0 takes a free port."""
    key_variable: str = Field(default="CPO_RAY_API_KEY", json_schema_extra=EXECUTION)
    """Environment variable with the endpoint's key. Without it and without `key_file`, a local run makes a new key."""
    key_file: Path | None = Field(default=None, json_schema_extra=EXECUTION)
    """File with the endpoint's key, used if the environment variable is not set."""
    start_timeout_s: Annotated[float, Field(gt=0)] = Field(default=600.0, json_schema_extra=EXECUTION)
    """Timeout for starting the engines, seconds."""
    drain_timeout_s: Annotated[float, Field(ge=0)] = Field(default=60.0, json_schema_extra=EXECUTION)
    """How long, in seconds, active requests may take to finish when the endpoint, or one of its replicas, stops."""
    in_place: Auto[bool] = Field(default=None, json_schema_extra=EXECUTION)
    """Use one engine for all models instead of one each: before a request, its model's weights are loaded into the engine in
    place, without a restart. For alpha sweeps; concurrent requests to different models wait for each other. `auto`: where there
    are fewer GPUs than models, in a run."""
    min_replicas: Annotated[int, Field(ge=1)] = Field(default=1, json_schema_extra=EXECUTION)
    """Engines per model (with `in_place`: for all models) at low load."""
    max_replicas: Annotated[int, Field(ge=1)] = Field(default=1, json_schema_extra=EXECUTION)
    """Engines per model at high load. The cluster must have room for them."""
    requests_per_replica: Annotated[float, Field(gt=0)] = Field(default=32.0, json_schema_extra=EXECUTION)
    """Target of autoscaling: active requests per engine."""
    scale_up_after_s: Annotated[float, Field(gt=0)] = Field(default=30.0, json_schema_extra=EXECUTION)
    """How long, in seconds, the load must be high before another engine is started."""
    scale_down_after_s: Annotated[float, Field(gt=0)] = Field(default=600.0, json_schema_extra=EXECUTION)
    """How long, in seconds, the load must be low before an engine is stopped. Starting it again takes time."""
    no_repeat_ngram: bool = Field(default=False, json_schema_extra=EXECUTION)
    """Load what `no_repeat_ngram_size` in a request needs; without it, such requests are refused. On GPUs the engines then use
    vLLM's first model runner. Stage `generation` sets it if a decoding has `no_repeat_ngram`."""
    limits: LimitsConfig = LimitsConfig()
    engine: EngineConfig = EngineConfig()
    """Every replica has one."""

    @model_validator(mode="after")
    def _check(self) -> "ServingConfig":
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} exceeds max_replicas {self.max_replicas}")
        return self

    def engines(self, models: int) -> int:
        """Number of engines at low load, if `models` models are served."""
        return (1 if self.in_place else models) * self.min_replicas
