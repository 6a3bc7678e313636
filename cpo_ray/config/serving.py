"""Stage `merging`, and the endpoint."""

from typing import Annotated

from pydantic import Field, model_validator

from cpo_ray.config.engine import EngineConfig
from cpo_ray.config.section import EXECUTION, Section


class MergingConfig(Section):
    """Stage `merging`: the weight-space ensemble `theta = alpha * theta_MLE + (1 - alpha) * theta_CPO`."""

    alphas: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.3, 0.7)
    """One merged model per alpha (the paper: 0.1, 0.3, 0.5, 0.7, 0.9)."""

    @model_validator(mode="after")
    def _check(self) -> "MergingConfig":
        names = [self.model_name(alpha) for alpha in self.alphas]
        if len(set(names)) != len(names):
            raise ValueError(f"alphas {list(self.alphas)} name one model twice: {names}")
        return self

    @staticmethod
    def model_name(alpha: float) -> str:
        """The merged model's directory and its name at the endpoint."""
        return f"merged-{alpha:.2f}"


class ServingConfig(Section):
    """Ray Serve: every model of the run behind one OpenAI-compatible endpoint."""

    host: str = Field(default="127.0.0.1", json_schema_extra=EXECUTION)
    """Where to listen. Anything but loopback needs a key from the environment."""
    port: Annotated[int, Field(ge=0, le=65535)] = Field(default=0, json_schema_extra=EXECUTION)
    """0 takes a free port."""
    key_variable: str = Field(default="CPO_RAY_API_KEY", json_schema_extra=EXECUTION)
    """Environment variable with the endpoint's key. Unset, a local run makes a key for itself."""
    start_timeout_s: Annotated[float, Field(gt=0)] = Field(default=600.0, json_schema_extra=EXECUTION)
    """How long the engines may take to start."""
    engine: EngineConfig = EngineConfig()
    """The engine of every replica."""
