"""Stage `merging`, and the endpoint."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from cpo_ray.config.inference import EngineConfig
from cpo_ray.config.section import EXECUTION, Section


class MergingConfig(Section):
    """Stage `merging`: the weight-space ensemble `theta = alpha * theta_MLE + (1 - alpha) * theta_CPO`."""

    alphas: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.3, 0.7)
    """One merged model per alpha, of at most two decimals (the paper: 0.1, 0.3, 0.5, 0.7, 0.9)."""

    @model_validator(mode="after")
    def _check(self) -> "MergingConfig":
        finer = [alpha for alpha in self.alphas if alpha != round(alpha, 2)]
        if finer:
            raise ValueError(
                f"alphas {finer}: a merged model is named by its alpha's first two decimals ({self.model_name(finer[0])}), "
                "so an alpha has no more"
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
    """What one request, and all of them together, may ask of the endpoint. More is refused before any engine sees it."""

    body_mib: Annotated[float, Field(gt=0)] = Field(default=4.0, json_schema_extra=EXECUTION)
    """Size of a request's body."""
    prompts: Annotated[int, Field(ge=1)] = Field(default=64, json_schema_extra=EXECUTION)
    """Prompts in one request."""
    samples: Annotated[int, Field(ge=1)] = Field(default=64, json_schema_extra=EXECUTION)
    """`n`: answers per prompt, or beams."""
    tokens: Annotated[int, Field(ge=1)] = Field(default=65_536, json_schema_extra=EXECUTION)
    """Tokens that one request may have made: prompts * n * max_tokens."""
    requests: Annotated[int, Field(ge=1)] = Field(default=512, json_schema_extra=EXECUTION)
    """Requests under way or waiting, for all models together. The next one gets 429 and a Retry-After."""


class ServingConfig(Section):
    """Ray Serve: every model of the run behind one OpenAI-compatible endpoint."""

    host: str = Field(default="127.0.0.1", json_schema_extra=EXECUTION)
    """Where to listen. Anything but loopback needs a key from the environment or a file."""
    port: Annotated[int, Field(ge=0, le=65535)] = Field(default=0, json_schema_extra=EXECUTION)
    """0 takes a free port."""
    key_variable: str = Field(default="CPO_RAY_API_KEY", json_schema_extra=EXECUTION)
    """Environment variable with the endpoint's key. Without it and a `key_file`, a local run makes a key for itself."""
    key_file: Path | None = Field(default=None, json_schema_extra=EXECUTION)
    """File with the endpoint's key, for where the environment variable is not set."""
    start_timeout_s: Annotated[float, Field(gt=0)] = Field(default=600.0, json_schema_extra=EXECUTION)
    """How long the engines may take to start."""
    drain_timeout_s: Annotated[float, Field(ge=0)] = Field(default=60.0, json_schema_extra=EXECUTION)
    """How long requests under way may take to finish once the endpoint, or one of its replicas, is told to end."""
    in_place: bool = Field(default=False, json_schema_extra=EXECUTION)
    """One engine for all models instead of one each: the weights of the model that is asked next are loaded into it in
    place, without a restart. For alpha sweeps; questions to several models at once take turns."""
    min_replicas: Annotated[int, Field(ge=1)] = Field(default=1, json_schema_extra=EXECUTION)
    """Engines per model (with `in_place`: for all models) when little is asked."""
    max_replicas: Annotated[int, Field(ge=1)] = Field(default=1, json_schema_extra=EXECUTION)
    """Engines per model when much is asked. The cluster must have room for them."""
    requests_per_replica: Annotated[float, Field(gt=0)] = Field(default=32.0, json_schema_extra=EXECUTION)
    """Requests under way per engine that autoscaling aims at."""
    scale_up_after_s: Annotated[float, Field(gt=0)] = Field(default=30.0, json_schema_extra=EXECUTION)
    """How long more must be asked before another engine is started."""
    scale_down_after_s: Annotated[float, Field(gt=0)] = Field(default=600.0, json_schema_extra=EXECUTION)
    """How long less must be asked before an engine is ended. Starting one again takes its time."""
    limits: LimitsConfig = LimitsConfig()
    """What is refused with a 4xx."""
    engine: EngineConfig = EngineConfig()
    """The engine of every replica."""

    @model_validator(mode="after")
    def _check(self) -> "ServingConfig":
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} exceeds max_replicas {self.max_replicas}")
        return self

    def engines(self, models: int) -> int:
        """How many are up while little is asked, of `models` models that are served."""
        return (1 if self.in_place else models) * self.min_replicas
